"""What a model takes of memory when it is served: weights + workspace + pages × bytes per page.

Weights are mapped from the graph's file: they fill up as they are read, are shared between processes, and the system
may drop them. The rest belongs to the process. The workspace is a bound, checked against measured growth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.page_pool import bytes_per_page
from llmosd.types import KvFormat

SESSION = 24 << 20
"""What ONNX Runtime's session and the library take, whatever the model; 20 MiB were measured."""

ARENA = 2  # ONNX Runtime's arena grows by doubling
FLOAT = 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """In bytes, but for `pages`."""

    weights: int  # mapped
    workspace: int
    page: int
    pages: int

    @property
    def pool(self) -> int:
        return self.pages * self.page

    @property
    def private(self) -> int:
        return self.workspace + self.pool

    @property
    def total(self) -> int:
        return self.weights + self.private


def footprint(
    graph: Path, geometry: Geometry, *, tokens: int, rows: int, pages: int, page_tokens: int, kv_format: KvFormat
) -> Footprint:
    """Of a native graph whose steps have at most `tokens` tokens, `rows` of which need logits."""
    return Footprint(
        weights=graph.with_suffix(".data").stat().st_size,
        workspace=SESSION + activations(geometry, tokens) + rows * geometry.vocab * FLOAT,
        page=bytes_per_page(geometry, page_tokens, kv_format),
        pages=pages,
    )


def activations(geometry: Geometry, tokens: int) -> int:
    """Bytes of one step's values: a layer's widest moment beside the residual stream, and products' int8 inputs."""
    g = geometry
    attended = g.heads * g.head_dim
    widest = 2 * g.hidden + max(3 * g.ff, g.qkv_width + attended)
    rounded = max(g.hidden, g.ff, attended)
    return tokens * (ARENA * FLOAT * widest + 2 * rounded)
