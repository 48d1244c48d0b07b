"""Is an installed model still what was imported, and does it still answer as its reference does?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmosd.errors import ModelError
from llmosd.runtime.catalogue import manifest
from llmosd.runtime.importer import read_stamp
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import Backend, variant_name
from llmosd.runtime.store import sha256
from llmosd.runtime.verify import verify_graph
from llmosd.types import WeightFormat

VARIANTS: tuple[tuple[Backend, WeightFormat], ...] = (
    ("native", "file"),
    ("native", "float32"),
    ("gather", "file"),
    ("gather", "float32"),
    ("cuda", "file"),
)


def check(model: InstalledModel) -> dict[str, float]:
    """By built graph, how far below the best its worst token of the golden continuation lies, in logits.

    Raises ModelError where a file is damaged or a graph does not reproduce the model.
    """
    if names := damaged(model):
        raise ModelError(f"damaged: {', '.join(names)}; run `llmosd models rm {model.id}`, then pull it again")
    golden = manifest(model.id).golden
    return {
        variant: verify_graph(graph, model.geometry, golden, backend=backend, weights=weights)
        for backend, weights in VARIANTS
        if (graph := model.graph(variant := variant_name(backend, weights))).is_file()
    }


def damaged(model: InstalledModel) -> list[str]:
    """Files that are missing or have another checksum than the record of their import."""
    return [str(path.relative_to(model.path)) for path, expected in _recorded(model) if _checksum(path) != expected]


def _recorded(model: InstalledModel) -> Iterator[tuple[Path, str]]:
    for name, expected in model.record.files.items():
        yield model.path / name, expected
    for variant in model.graphs:
        folder = model.graph(variant).parent
        for name, expected in read_stamp(folder).files.items():
            yield folder / name, expected


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return ""
