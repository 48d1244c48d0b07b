"""One row of logits seen by blocks, and its largest values: what sampling does over a whole vocabulary.

The native functions and the numpy ones agree but for rounding; a row's result depends on nothing but the row.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmosd.runtime import native

BLOCK = 64  # kRowBlock of the native library

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


class Rows(Protocol):
    """Rows are not empty."""

    def weigh(self, row: Row, scale: float) -> tuple[Row, Sums]:
        """For each block of 64 its largest logit, and Σ exp((logit − the row's largest) · scale).

        A sum is not finite where a logit is NaN or the row's largest is not finite.
        """

    def above(self, row: Row, maxima: Row, least: float) -> Ids:
        """Ids of the logits that reach `least`, falling, ties by id. The row holds no NaN."""


class NumpyRows:
    """Where the native library cannot be had."""

    def weigh(self, row: Row, scale: float) -> tuple[Row, Sums]:
        starts = np.arange(0, len(row), BLOCK)
        maxima: Row = np.maximum.reduceat(row, starts)
        with np.errstate(invalid="ignore"):
            weights = np.exp((row - maxima.max()) * np.float32(scale))
        sums: Sums = np.add.reduceat(weights, starts).astype(np.float64)
        return maxima, sums

    def above(self, row: Row, maxima: Row, least: float) -> Ids:
        ids = (row >= np.float32(least)).nonzero()[0]
        return np.asarray(ids[(-row[ids]).argsort(kind="stable")])


class NativeRows:
    """The native library's functions, which let other threads run meanwhile. One thread only: it keeps memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._ids = np.empty(0, np.int64)

    def weigh(self, row: Row, scale: float) -> tuple[Row, Sums]:
        blocks = -(-len(row) // BLOCK)
        maxima, sums = np.empty(blocks, np.float32), np.empty(blocks, np.float64)
        self._library.llmos_weigh(_address(row), len(row), scale, _address(maxima), _address(sums))
        return maxima, sums

    def above(self, row: Row, maxima: Row, least: float) -> Ids:
        if len(row) > len(self._ids):
            self._ids = np.empty(len(row), np.int64)
        count = self._library.llmos_above(_address(row), len(row), _address(maxima), least, _address(self._ids))
        if count < 0:
            raise MemoryError
        return self._ids[:count].copy()


def best_rows() -> Rows:
    """The native functions if they work here."""
    found = native.status()
    return NativeRows(native.load(found.path)) if found.available and found.path else NumpyRows()


def _address(array: npt.NDArray[np.generic]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
