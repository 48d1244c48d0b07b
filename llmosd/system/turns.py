"""Whose turn it is: one step serves one model, and those that have work share the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmosd.types import NICE_MAX, Nanoseconds

Urgency = tuple[int, ...]
"""A request's rank without its arrival: smaller goes first, equals share."""
LAST = (NICE_MAX + 1,)  # of whoever has but pages on their way


class Turns:
    """The most urgent model goes first; of equally urgent ones the one that has been served for the least time.

    A model that had no work does not save its time up: it starts where the least served of the others stands.
    """

    def __init__(self) -> None:
        self._served: dict[str, Nanoseconds] = {}
        self._turns: dict[str, int] = {}  # when each had its last one
        self._busy: frozenset[str] = frozenset()
        self._turn = 0

    def next(self, candidates: Sequence[str], urgency: Callable[[str], Urgency]) -> str:
        """The model, of those that have work (at least one)."""
        busy = frozenset(candidates)
        if len(candidates) == 1:  # nearly always
            self._busy = busy
            return candidates[0]
        floor = min((self._served.get(model, 0) for model in busy & self._busy), default=0)
        for model in busy - self._busy:
            self._served[model] = max(floor, self._served.get(model, 0))
        self._busy = busy
        served, turns = self._served, self._turns
        return min(candidates, key=lambda model: (urgency(model), served.get(model, 0), turns.get(model, 0)))

    def charge(self, model: str, time: Nanoseconds) -> None:
        """It has had a turn that took so long."""
        self._turn += 1
        self._turns[model] = self._turn
        self._served[model] = self._served.get(model, 0) + time
