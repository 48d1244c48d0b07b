"""Are the files of an installed model the ones that were imported?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmosd.runtime.importer import GraphStamp
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.store import sha256


def damaged(model: InstalledModel) -> list[str]:
    """Files that are missing or have another checksum than the record of their import."""
    return [str(path.relative_to(model.path)) for path, expected in _recorded(model) if _checksum(path) != expected]


def _recorded(model: InstalledModel) -> Iterator[tuple[Path, str]]:
    for name, expected in model.record.files.items():
        yield model.path / name, expected
    for variant in model.graphs:
        folder = model.graph(variant).parent
        stamp = msgspec.json.decode((folder / "graph.json").read_bytes(), type=GraphStamp)
        for name, expected in stamp.files.items():
            yield folder / name, expected


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return ""
