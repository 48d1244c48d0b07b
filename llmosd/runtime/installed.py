"""A model in the store: what its record says and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from llmosd.errors import ModelError
from llmosd.runtime.catalogue import Golden
from llmosd.runtime.chat_template import ChatTemplate
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.tokenizer import Tokenizer, TokenizerMeta

RECORD_FORMAT = 1


class Record(msgspec.Struct, frozen=True):
    """model.json: everything but weights. `files` gives the SHA-256 of each file of the import."""

    format: int
    id: str
    name: str
    licence: str
    geometry: Geometry
    tokenizer: TokenizerMeta
    chat_template: str
    files: dict[str, str]
    imported_at: float
    page_tokens: int = 0  # tokens of a page that it is to be served with; 0 is what suits the device
    golden: Golden | None = None  # what its graphs are verified against; records of old have none


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A complete import; its directory is never changed but for graphs and measurements added beside it."""

    id: str
    path: Path
    record: Record

    @property
    def geometry(self) -> Geometry:
        return self.record.geometry

    @property
    def source(self) -> Path:
        return self.path / "source.gguf"

    @property
    def graphs(self) -> tuple[str, ...]:
        """Variants that have been built."""
        return tuple(sorted(path.parent.name for path in self.path.glob("graphs/*/model.onnx")))

    def graph(self, variant: str) -> Path:
        return self.path / "graphs" / variant / "model.onnx"

    def load_tokenizer(self) -> Tokenizer:
        try:
            text = (self.path / "tokenizer.json").read_text("utf-8")
        except OSError as error:
            raise ModelError(f"the tokenizer of {self.id} cannot be read: {error}") from error
        return Tokenizer(text, self.record.tokenizer)

    def load_chat_template(self) -> ChatTemplate:
        tokenizer = self.record.tokenizer
        return ChatTemplate(self.record.chat_template, bos_token=tokenizer.bos_text, eos_token=tokenizer.eos_text)


def model_directory(home: Path, model_id: str) -> Path:
    return home / "models" / model_id


def installed(home: Path) -> list[InstalledModel]:
    """All complete models of the store, by id."""
    records = sorted((home / "models").glob("*/model.json"))
    return [_load(path) for path in records if not path.parent.name.startswith(".")]


def find(home: Path, model_id: str) -> InstalledModel:
    """Raises ModelError where the model is not in the store."""
    path = model_directory(home, model_id) / "model.json"
    if not path.is_file():
        raise ModelError(f"model {model_id} is not installed: run `llmosd models pull {model_id}`")
    return _load(path)


def _load(path: Path) -> InstalledModel:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if record.format != RECORD_FORMAT:
        raise ModelError(f"{path} has format {record.format}: run `llmosd models rm {record.id}` and pull it again")
    return InstalledModel(record.id, path.parent, record)
