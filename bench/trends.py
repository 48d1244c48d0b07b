"""Does a series that was measured at even intervals rise or fall, apart from what explains it?

Neighbours depend on each other, over seconds by what is being served and over minutes by what else the machine does. So
the slope is that of means over long blocks, whose scatter about the line holds all of that: its interval is Student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.quality import student_95

BLOCKS = 8
Series = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Trend:
    """A change from the first to the last of the values as a share of their mean, with its 95 % interval."""

    mean: float
    change: float
    low: float
    high: float


def trend(values: Series, explained: Series | None = None) -> Trend:
    """`explained` [values, causes] is what may make a value larger or smaller: values count as shares of what a linear
    model makes of it. Values are positive. Raises ValueError for fewer than two a block.
    """
    causes = np.zeros((len(values), 0)) if explained is None else explained
    if len(values) < max(2 * BLOCKS, causes.shape[1] + 4):
        raise ValueError(f"{len(values)} values are too few for a trend")
    time = np.linspace(-0.5, 0.5, len(values))
    shares = values / _expected(values, causes, time)
    at, height = (np.array([part.mean() for part in np.array_split(one, BLOCKS)]) for one in (time, shares))
    slope, half = _line(at - at.mean(), height - height.mean())
    size = float(shares.mean())
    return Trend(float(values.mean()), slope / size, (slope - half) / size, (slope + half) / size)


def _expected(values: Series, causes: Series, time: Series) -> Series:
    """By least squares of the relative errors; what goes with time is not a cause's."""
    design = np.column_stack([np.ones(len(values)), causes, time])
    found, *_ = np.linalg.lstsq(design / values[:, None], np.ones(len(values)), rcond=None)
    expected: Series = design[:, :-1] @ found[:-1]
    return expected


def _line(x: Series, y: Series) -> tuple[float, float]:
    """Slope of the least-squares line through centred points, and half of its 95 % interval."""
    slope = x @ y / (x @ x)
    rest = y - slope * x
    freedom = len(x) - 2
    return float(slope), student_95(freedom) * math.sqrt(rest @ rest / freedom / (x @ x))
