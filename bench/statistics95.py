"""Medians with 95 % intervals that assume nothing of the distribution."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and the order statistics that hold it with at least 95 % where the samples are enough for that."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def is_95(self) -> bool:
        return self.samples >= 6  # the extremes of six hold the median with 97 %


def median_interval(values: list[float]) -> Interval:
    ordered = sorted(values)
    rank = max(_rank(len(ordered)), 0)
    return Interval(statistics.median(ordered), ordered[rank], ordered[-1 - rank], len(ordered))


def _rank(count: int) -> int:
    """How many of `count` samples may be cut off on each side with 95 % of the median's chances left; −1 for none."""
    rank, outside = -1, 0.0
    while (outside := outside + 2 * math.comb(count, rank + 1) / 2**count) <= 0.05:
        rank += 1
    return rank
