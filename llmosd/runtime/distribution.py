"""What a row of logits says of its tokens, in numpy; `native/draw.cpp` has the same.

A row is seen by blocks of 64: the largest logit of each, and what each adds to the softmax's denominator.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llmosd.errors import StepError
from llmosd.types import Sampling

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

NOT_FINITE = "the model produced logits that are not finite numbers; this sequence cannot go on"
BLOCK = 64
CANDIDATES = (64, 512)  # likeliest tokens to try a cut on before looking at all that it may keep


class Distribution:
    """softmax(scale · row). Weights are relative to the likeliest token's, which is 1."""

    def __init__(self, row: Row, scale: float) -> None:
        """Raises StepError if the logits are not finite numbers; single ones of −∞ are none."""
        self._row, self._scale = row, scale
        self._maxima, sums = weigh(row, scale)
        self._ends = sums.cumsum()
        self._largest = float(self._maxima.max())
        self.total = float(self._ends[-1])
        if not math.isfinite(self.total):
            raise StepError(NOT_FINITE)

    def weights(self, values: Row) -> Sums:
        """Of tokens with these logits; not normalised: all sum to `total`."""
        weights: Sums = np.exp((values.astype(np.float64) - self._largest) * self._scale)
        return weights

    def logprobs(self, ids: Ids) -> list[float]:
        values = (self._row[ids].astype(np.float64) - self._largest) * self._scale - math.log(self.total)
        return [float(value) for value in values]

    def top(self, count: int) -> Ids:
        """The `count` likeliest tokens (all, if there are fewer), likeliest first, ties by token id.

        While `count` is small, so many blocks have a maximum that reaches the count-th largest maximum: a limit that
        is found among few numbers and lies close to the count-th largest logit.
        """
        heads = self._maxima if count <= len(self._maxima) else self._row
        place = max(0, len(heads) - max(count, 1))
        return above(self._row, float(np.partition(heads, place)[place]))[:count]

    def quantile(self, u: float) -> int:
        """The token that the share `u` < 1 of the total falls on, tokens being ordered by id."""
        target = u * self.total
        block = min(int(self._ends.searchsorted(target, "right")), len(self._ends) - 1)
        before = float(self._ends[block - 1]) if block else 0.0
        first = block * BLOCK
        return first + quantile(self.weights(self._row[first : first + BLOCK]), target - before)

    def cut(self, sampling: Sampling) -> tuple[Ids, Sums]:
        """Tokens that top-k, min-p and top-p leave, and their weights, likeliest first, ties by token id."""
        for count in [sampling.top_k] if sampling.top_k else CANDIDATES:
            ids = self.top(count)
            weights = self.weights(self._row[ids])
            kept = self._kept(weights, sampling, whole=sampling.top_k > 0 or len(ids) == len(self._row))
            if kept is not None:
                return ids[:kept], weights[:kept]
        ids = above(self._row, self._logit(self._least_kept(sampling)))
        weights = self.weights(self._row[ids])
        kept = self._kept(weights, sampling, whole=sampling.min_p > 0.0 or len(ids) == len(self._row))
        return ids[:kept], weights[:kept]

    def _least_kept(self, sampling: Sampling) -> float:
        """No weight below this one is kept: min-p says so, or all such tokens together fit into what top-p drops."""
        least = sampling.min_p or (1.0 - sampling.top_p) * self.total / len(self._row)
        return 0.5 * least  # room for rounding

    def _logit(self, weight: float) -> float:
        return self._largest + math.log(weight) / self._scale if weight > 0.0 else -math.inf

    def _kept(self, weights: Sums, sampling: Sampling, whole: bool) -> int | None:
        """How many of the falling weights min-p and top-p leave; None, or all, if these are too few to tell."""
        if sampling.min_p > 0.0:
            above = int(np.count_nonzero(weights >= sampling.min_p))
            if above == len(weights) and not whole:
                return None
            weights, whole = weights[:above], True
        if sampling.top_p >= 1.0:
            return len(weights) if whole else None
        ends = weights.cumsum()
        needed = sampling.top_p * (float(ends[-1]) if whole else self.total)
        return int(ends.searchsorted(needed)) + 1 if ends[-1] >= needed else None


def quantile(weights: Sums, target: float) -> int:
    """The weight with which the running sum passes `target`; never one of zero, whatever the rounding."""
    ends = weights.cumsum()
    return min(int(ends.searchsorted(target, "right")), int(ends.searchsorted(ends[-1])))


def weigh(row: Row, scale: float) -> tuple[Row, Sums]:
    """For each block its largest logit, and Σ exp((logit − the row's largest) · scale).

    A sum is not finite where a logit is NaN or the row's largest is not finite.
    """
    starts = np.arange(0, len(row), BLOCK)
    maxima: Row = np.maximum.reduceat(row, starts)
    with np.errstate(invalid="ignore"):
        weights = np.exp((row - maxima.max()) * np.float32(scale))
    sums: Sums = np.add.reduceat(weights, starts).astype(np.float64)
    return maxima, sums


def above(row: Row, least: float) -> Ids:
    """Ids of the logits that reach `least`, falling, ties by id. The row holds no NaN."""
    ids = (row >= np.float32(least)).nonzero()[0]
    return np.asarray(ids[(-row[ids]).argsort(kind="stable")])
