"""The K/V pages of all sequences, outside the graph: it reads and writes them where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmosd.errors import StepError
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.page_bytes import best_page_bytes
from llmosd.runtime.reserved import Reserved
from llmosd.types import KvFormat

Int32 = NDArray[np.int32]
SCALE_BYTES = 4


def width(head_dim: int, kv_format: KvFormat) -> int:
    """Elements that a page keeps of one token's key or value of one head: int8 codes are followed by their scales."""
    return head_dim + SCALE_BYTES if kv_format == "int8" else head_dim


def bytes_per_page(geometry: Geometry, page_tokens: int, kv_format: KvFormat) -> int:
    """Bytes of K and V of one page over all layers."""
    elements = geometry.layers * geometry.kv_heads * width(geometry.head_dim, kv_format) * page_tokens
    return 2 * elements * np.dtype(kv_format).itemsize


def pages_that_fit(geometry: Geometry, page_tokens: int, memory_bytes: int, kv_format: KvFormat = "float16") -> int:
    """Pages whose K and V over all layers fit in `memory_bytes`."""
    return memory_bytes // bytes_per_page(geometry, page_tokens, kv_format)


def check_pages(pool: Pool, cumulative: Int32, past: Int32, table: Int32) -> None:
    """For operators that do not look: raises StepError where a sequence needs a page that is not there.

    That is one beyond its row of the table, or one that is not in the pool.
    """
    ends = past + np.diff(cumulative)
    used = -(-ends // pool.page_tokens)
    if used.max(initial=0) > table.shape[1]:
        raise StepError(f"a sequence of {ends.max()} tokens needs {used.max()} pages of {table.shape[1]} in its row")
    named = table[np.arange(table.shape[1]) < used[:, None]]
    if named.size and (named.min() < 0 or named.max() >= pool.pages):
        raise StepError(f"the page table names a page outside 0 … {pool.pages - 1}")


class Pool(Protocol):
    """The pages of a model, `pages` of `page_tokens` tokens each, wherever they lie."""

    pages: int
    page_tokens: int
    keys: list[Any]  # by layer; as the graph sees them
    values: list[Any]

    def inputs(self) -> Iterator[tuple[str, Any]]:
        """The graph's inputs that the pool is, by name."""

    def copy_page(self, source: int, target: int) -> None:
        """K and V of all layers of one page to another."""

    def resize(self, pages: int) -> None:
        """Use the first so many pages only; the memory of the others is given back where that can be done."""

    def clear(self) -> None:
        """Let go of the memory."""


class HostPool:
    """Pages in numpy arrays: keys [P, KH, D, S] and values [P, KH, S, D] for each layer.

    With int8, D is 4 more: the bytes of a page and head are its codes, laid out as without, and then S float32 scales.

    All addresses are reserved once and do not move; memory comes as pages are written to, and goes by `resize`.
    """

    def __init__(self, geometry: Geometry, *, pages: int, page_tokens: int, kv_format: KvFormat) -> None:
        g, kind, size = geometry, np.dtype(kv_format), width(geometry.head_dim, kv_format)
        self.pages, self.page_tokens = pages, page_tokens
        self._reserved = Reserved(2 * g.layers, pages * g.kv_heads * size * page_tokens * kind.itemsize)
        self.keys: list[NDArray[Any]] = [
            self._reserved.array(layer, kind, (pages, g.kv_heads, size, page_tokens)) for layer in range(g.layers)
        ]
        self.values: list[NDArray[Any]] = [
            self._reserved.array(g.layers + layer, kind, (pages, g.kv_heads, page_tokens, size))
            for layer in range(g.layers)
        ]
        self.bytes = best_page_bytes([*self.keys, *self.values])

    def inputs(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            yield f"key_cache.{layer}", keys
            yield f"value_cache.{layer}", values

    def copy_page(self, source: int, target: int) -> None:
        for _, array in self.inputs():
            array[target] = array[source]

    def resize(self, pages: int) -> None:
        """Use the first so many pages only; the memory of the others is given back, what they held is lost."""
        self._reserved.resize(self.keys[0][:pages].nbytes)

    def clear(self) -> None:
        self._reserved.resize(0)
        self.keys.clear()
        self.values.clear()
        del self.bytes
