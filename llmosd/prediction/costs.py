"""What page transfers cost, learnt from those of this machine."""

from __future__ import annotations

from llmosd.types import TransferDone

_OUTLIER = 4.0  # a pause of the machine counts as at most so many times what is expected
_WARM = 16  # transfers before anything counts as an outlier


class FittedTransferCost:
    """Mean work on a page-out and on a page-in, later ones counting more."""

    def __init__(self, page_s: float = 1e-3) -> None:
        """`page_s` is assumed to begin with, for either."""
        self._out, self._in = _Mean(page_s), _Mean(page_s)

    def seconds(self, outward: int, inward: int) -> float:
        return outward * self._out.value + inward * self._in.value

    def observe(self, done: TransferDone) -> None:
        if done.error is None:
            (self._in if done.inward else self._out).add(done.ns / 1e9)


class _Mean:
    """Exponentially weighted over some `_WINDOW` values, the first ones alike."""

    _WINDOW = 64

    def __init__(self, assumed: float) -> None:
        self.value = assumed
        self._count = 0

    def add(self, value: float) -> None:
        if self._count >= _WARM:
            value = min(value, _OUTLIER * self.value)
        self._count = min(self._count + 1, self._WINDOW)
        self.value += (value - self.value) / (self._count + 1)
