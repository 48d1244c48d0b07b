"""Sampling by the native library: one call for all rows of a step."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

from llmosd.errors import StepError
from llmosd.runtime import native
from llmosd.runtime.distribution import NOT_FINITE, Row
from llmosd.runtime.sampling import Draw, NumpySampler, Sampler
from llmosd.runtime.stream import Stream

_NOT_FINITE = -1  # kNotFinite of the native library


class NativeSampler:
    """A Sampler that keeps the arrays for results; other threads run while it draws."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._sampler = library.llmos_sampler_open(threads)
        if self._sampler is None:
            raise MemoryError
        self._draw_rows = library.llmos_draw
        weakref.finalize(self, library.llmos_sampler_close, self._sampler)
        self._rows, self._width = 0, -1
        self._reserve(rows=1, width=0)

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[Draw | StepError]:
        if not streams:  # an array without rows may have any strides
            return []
        assert rows.shape[0] == len(streams) and rows.itemsize == rows.strides[1] == 4, "rows are not float32 [R, V]"
        self._reserve(len(streams), max((stream.sampling.logprobs or 0 for stream in streams), default=0))
        self._streams[: len(streams)] = [stream.address for stream in streams]
        stride, length = rows.strides[0] // rows.itemsize, rows.shape[1]
        logits = (rows.ctypes.data, stride, length)
        if self._draw_rows(self._sampler, *logits, self._streams, len(streams), *self._results):
            raise MemoryError
        return [self._draw(place, stream, length) for place, stream in enumerate(streams)]

    def _draw(self, place: int, stream: Stream, length: int) -> Draw | StepError:
        token, tops = self._tokens[place], stream.sampling.logprobs
        if token == _NOT_FINITE:
            return StepError(NOT_FINITE)
        if tops is None:
            return Draw(token)
        first = place * self._width
        last = first + min(tops, length)
        pairs = zip(self._top_ids[first:last], self._top_logprobs[first:last], strict=True)
        return Draw(token, self._logprobs[place], tuple(pairs))

    def _reserve(self, rows: int, width: int) -> None:
        """Room for the results of `rows` rows with `width` likeliest tokens each."""
        if rows <= self._rows and width <= self._width:
            return
        self._rows, self._width = max(rows, self._rows), max(width, self._width)
        self._streams: Any = (ctypes.c_void_p * self._rows)()
        self._tokens: Any = (ctypes.c_int64 * self._rows)()
        self._logprobs: Any = (ctypes.c_double * self._rows)()
        self._top_ids: Any = (ctypes.c_int64 * (self._rows * self._width))()
        self._top_logprobs: Any = (ctypes.c_double * (self._rows * self._width))()
        self._results = (self._tokens, self._logprobs, self._width, self._top_ids, self._top_logprobs)


def best_sampler(threads: int) -> Sampler:
    """The native one if it works here."""
    found = native.status()
    if found.available and found.path:
        return NativeSampler(native.load(found.path), threads)
    return NumpySampler()
