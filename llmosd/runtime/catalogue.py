"""The models this installation knows how to get: one TOML manifest each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmosd.errors import ModelError
from llmosd.resources import data_dir
from llmosd.runtime.geometry import Geometry


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GGUF file inside a wheel of a Python package index: `member` of `project` at `version`."""

    project: str
    version: str
    member: str
    wheel_bytes: int
    bytes: int
    sha256: str  # of the member


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Greedy continuation of a prompt by a float32 reference: what an import is verified against."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What suits it in a conversation; the command line samples so unless told otherwise."""

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a model that is known before it is fetched."""

    id: str
    name: str
    licence: str
    source: Source
    geometry: Geometry
    golden: Golden
    chat: Chat = Chat()
    page_tokens: int = 0  # tokens of a page that it is to be served with; 0 is what suits the device


def manifests() -> dict[str, Manifest]:
    """All manifests by model id. Raises ModelError for one that cannot be read."""
    found = (_read(path) for path in sorted(data_dir("models").glob("*.toml")))
    return {manifest.id: manifest for manifest in found}


def manifest(model_id: str) -> Manifest:
    """Raises ModelError, naming what there is, for an unknown id."""
    known = manifests()
    if model_id not in known:
        raise ModelError(f"no model {model_id!r} in the catalogue (it has: {', '.join(known)})")
    return known[model_id]


def _read(path: Path) -> Manifest:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{path} is not a usable manifest: {error}") from error
