"""The K/V pages of all sequences, outside the graph: it reads and writes them where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.geometry import Geometry

KvFormat = Literal["float16", "float32"]


def bytes_per_page(geometry: Geometry, page_tokens: int, kv_format: KvFormat) -> int:
    """Bytes of K and V of one page over all layers."""
    return geometry.page_bytes(page_tokens, np.dtype(kv_format).itemsize)


def pages_that_fit(geometry: Geometry, page_tokens: int, memory_bytes: int, kv_format: KvFormat = "float16") -> int:
    """Pages whose K and V over all layers fit in `memory_bytes`."""
    return memory_bytes // bytes_per_page(geometry, page_tokens, kv_format)


class HostPool:
    """Pages in numpy arrays: keys [P, KH, D, S] and values [P, KH, S, D] for each layer."""

    def __init__(self, geometry: Geometry, *, pages: int, page_tokens: int, kv_format: KvFormat) -> None:
        g, kind = geometry, np.dtype(kv_format)
        self.pages, self.page_tokens = pages, page_tokens
        self.keys: list[NDArray[Any]] = [
            np.zeros((pages, g.kv_heads, g.head_dim, page_tokens), kind) for _ in range(g.layers)
        ]
        self.values: list[NDArray[Any]] = [
            np.zeros((pages, g.kv_heads, page_tokens, g.head_dim), kind) for _ in range(g.layers)
        ]

    def inputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """The graph's inputs that the pool is, by name."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            yield f"key_cache.{layer}", keys
            yield f"value_cache.{layer}", values

    def copy_page(self, source: int, target: int) -> None:
        """K and V of all layers of one page to another."""
        for _, array in self.inputs():
            array[target] = array[source]

    def clear(self) -> None:
        """Let go of the memory."""
        self.keys.clear()
        self.values.clear()
