"""Sampling by the native library: within a model's run, or one call for all rows of a step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from llmosd.errors import StepError
from llmosd.runtime import native
from llmosd.runtime.distribution import NOT_FINITE, Row
from llmosd.runtime.sampling import Draw, NumpySampler, Sampler
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

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[Draw | StepError]:
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
        return drawn(self._tokens[:count], streams)

    def _reserve(self, rows: int) -> None:
        self._streams: Any = (ctypes.c_void_p * rows)()
        self._tokens: Any = (ctypes.c_int64 * rows)()


def drawn(tokens: Iterable[int], streams: Iterable[Stream]) -> list[Draw | StepError]:
    """What the library has just drawn for these streams; a negative token is none."""
    return [_draw(token, stream) for token, stream in zip(tokens, streams, strict=True)]


def _draw(token: int, stream: Stream) -> Draw | StepError:
    if token < 0:
        return StepError(NOT_FINITE)
    return Draw(token) if stream.sampling.logprobs is None else Draw(token, *stream.logprobs)


def best_sampler(threads: int) -> Sampler:
    """The native one if it works here."""
    found = native.status()
    if found.available and found.path:
        return NativeSampler(native.load(found.path), threads)
    return NumpySampler()
