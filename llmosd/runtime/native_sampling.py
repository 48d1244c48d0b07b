"""Sampling by the native library, where the model's run has not done it: one call for several rows."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

from llmosd.runtime import native
from llmosd.runtime.distribution import Row
from llmosd.runtime.sampling import NumpySampler, Sampler
from llmosd.runtime.stream import Stream


class NativeSampler:
    """A Sampler that keeps the arrays for results; other threads run while it draws."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._sampler = library.llmos_sampler_open(threads)
        if self._sampler is None:
            raise MemoryError
        self._draw_rows = library.llmos_draw
        weakref.finalize(self, library.llmos_sampler_close, self._sampler)
        self._reserve(rows=1)

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[int]:
        count = len(streams)
        if not count:  # an array without rows may have any strides
            return []
        assert rows.shape[0] == count and rows.itemsize == rows.strides[1] == 4, "rows are not float32 [R, V]"
        if count > len(self._tokens):
            self._reserve(count)
        self._streams[:count] = [stream.address for stream in streams]
        logits = (rows.ctypes.data, rows.strides[0] // rows.itemsize, rows.shape[1])
        if self._draw_rows(self._sampler, *logits, self._streams, count, self._tokens):
            raise MemoryError
        tokens: list[int] = self._tokens[:count]
        return tokens

    def _reserve(self, rows: int) -> None:
        self._streams: Any = (ctypes.c_void_p * rows)()
        self._tokens: Any = (ctypes.c_int64 * rows)()


def best_sampler(threads: int) -> Sampler:
    """The native one if it works here."""
    found = native.status()
    if found.available and found.path:
        return NativeSampler(native.load(found.path), threads)
    return NumpySampler()
