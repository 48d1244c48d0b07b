"""Which tokens top-k, min-p and top-p leave, and which of them a quantile falls on, with few passes over the row."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from llmosd.types import Sampling

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

FIRST_CANDIDATES = 256  # how many of the likeliest tokens to try a cut on before looking at more
STRIP = 64
BLOCK = 256


def cut(probabilities: Row, sampling: Sampling) -> Ids:
    """Token ids, ascending, that top-k, min-p and top-p leave; a tie at the edge goes to the lower ids.

    Only an upper set of the probabilities is sorted; it is enlarged until it holds everything the cuts keep.
    """
    count = sampling.top_k or FIRST_CANDIDATES
    while True:
        ids = upper_set(probabilities, count)
        values = probabilities[ids]
        falling = np.sort(values)[::-1]
        kept = _cut_sorted(falling, sampling, whole=len(ids) == len(probabilities))
        if kept is not None:
            return _first(ids, values, kept, falling[kept - 1])
        count *= 16


def _cut_sorted(values: Row, sampling: Sampling, whole: bool) -> int | None:
    """How many of the probabilities, in descending order, are kept; None if that cannot be told from these alone."""
    kept = len(values)
    if sampling.top_k:
        kept, whole = min(kept, sampling.top_k), True
    if sampling.min_p > 0.0:
        above = int(np.count_nonzero(values[:kept] >= values[0] * np.float32(sampling.min_p)))
        if above == kept and not whole:
            return None
        kept, whole = above, True
    if sampling.top_p >= 1.0:
        return kept if whole else None
    sums = RunningSum(values[:kept])
    needed = sampling.top_p * (sums.total if whole else 1.0)
    return sums.index(needed) + 1 if sums.total >= needed else None


def _first(ids: Ids, values: Row, count: int, edge: np.float32) -> Ids:
    """The `count` ids with the greatest values, down to `edge`, in their own order; ties to the earlier ones."""
    kept = values > edge
    tied = (values == edge).nonzero()[0]
    kept[tied[: count - np.count_nonzero(kept)]] = True
    return np.asarray(ids[kept.nonzero()[0]])


def upper_set(row: Row, count: int) -> Ids:
    """Ids, ascending, of all values not below some threshold that at least `count` values reach.

    While `count` is small the threshold is the count-th largest of the maxima of disjoint strips: one pass, and close
    to the count-th largest value.
    """
    strips = len(row) // STRIP
    if count >= len(row):
        return np.arange(len(row))
    heads = row[: strips * STRIP].reshape(STRIP, strips).max(axis=0) if count * 2 < strips else row.copy()
    place = len(heads) - count
    heads.partition(place)
    return np.asarray((row >= heads[place]).nonzero()[0])


class RunningSum:
    """Sums over the first 1 … n weights, none negative, in two levels: all blocks, then inside the one asked for."""

    def __init__(self, weights: Row) -> None:
        self._weights = weights
        self._ends = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)).cumsum(dtype=np.float64)

    @property
    def total(self) -> float:
        return float(self._ends[-1])

    def index(self, target: float) -> int:
        """The first weight with which the sum reaches `target`, which is at most the total."""
        block = int(self._ends.searchsorted(target))
        return block * BLOCK + self._inside(block, target, "left")

    def quantile(self, u: float) -> int:
        """The weight that the share `u` < 1 of the total falls on; never one of zero, whatever the rounding."""
        target = u * self.total
        block = int(min(self._ends.searchsorted(target, "right"), self._ends.searchsorted(self.total)))
        return block * BLOCK + self._inside(block, target, "right")

    def _inside(self, block: int, target: float, side: Literal["left", "right"]) -> int:
        before = self._ends[block - 1] if block else 0.0
        sums = self._weights[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
        return int(min(sums.searchsorted(target - before, side), sums.searchsorted(sums[-1])))
