"""A queue ordered by rank that plans in O(log waiting): a binary heap with lazy deletion."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from itertools import count
from typing import NamedTuple

from llmosd.system.request import Request

Rank = tuple[int, ...]


class _Entry(NamedTuple):
    rank: Rank
    serial: int  # tells a request's living entry from the dead ones it left, and breaks their ties
    request: Request


class RankedQueue(ABC):
    """Waiting requests by rank, the smallest first. Ranks are unique and change only between `remove` and `add`.

    Removing leaves a dead entry in the heap, dropped when it comes to the top; once more than half of the heap is dead
    it is rebuilt, so each operation costs amortised O(log waiting) and memory stays within twice the waiting.
    """

    name: str

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._living: dict[str, _Entry] = {}
        self._serial = count()

    @abstractmethod
    def rank(self, request: Request) -> Rank: ...

    def __len__(self) -> int:
        return len(self._living)

    def add(self, request: Request) -> None:
        entry = _Entry(self.rank(request), next(self._serial), request)
        self._living[request.id] = entry
        heapq.heappush(self._heap, entry)

    def remove(self, request: Request) -> None:
        del self._living[request.id]
        if len(self._heap) > 2 * len(self._living):
            self._heap = list(self._living.values())
            heapq.heapify(self._heap)

    def head(self) -> Request | None:
        while self._heap and not self._lives(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0].request if self._heap else None

    def position(self, request: Request) -> int:
        """Place in the queue from 1; O(waiting), for inspection and never for planning."""
        rank = self._living[request.id].rank
        return 1 + sum(other.rank < rank for other in self._living.values())

    def check(self) -> None:
        in_heap = sorted(entry.serial for entry in self._heap if self._lives(entry))
        assert in_heap == sorted(entry.serial for entry in self._living.values()), "the heap lost a waiting request"
        assert all(e.rank == self.rank(e.request) for e in self._living.values()), "a rank changed while waiting"
        assert len(self._heap) <= 2 * len(self._living), "dead entries pile up"

    def _lives(self, entry: _Entry) -> bool:
        return self._living.get(entry.request.id) is entry
