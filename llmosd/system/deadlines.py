"""When live requests are to be given up: by their deadline, or because they were not admitted in time."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

from llmosd.system.request import Request
from llmosd.types import ENDED, Nanoseconds, State

Timeout = Literal["deadline", "queue"]
_SLACK = 64


class _Entry(NamedTuple):
    at: Nanoseconds
    number: int
    kind: Timeout
    request: Request  # never compared: a request has one entry of each kind

    @property
    def is_live(self) -> bool:
        return self.request.state not in ENDED


class Deadlines:
    """A heap with lazy deletion: every operation costs O(log n), and nothing is scanned for what is due."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._most = _SLACK

    def add(self, at: Nanoseconds, kind: Timeout, request: Request) -> None:
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if entry.is_live]
            heapify(self._heap)
            self._most = _SLACK + 2 * len(self._heap)
        heappush(self._heap, _Entry(at, request.number, kind, request))

    @property
    def next(self) -> Nanoseconds | None:
        """When one is due."""
        while self._heap and not self._heap[0].is_live:
            heappop(self._heap)
        return self._heap[0].at if self._heap else None

    def due(self, now: Nanoseconds) -> Iterator[tuple[Request, Timeout]]:
        """Those whose time has come, the earliest first; each is told once. Time in the queue matters only to who is
        there: who was admitted before, or is suspended, is not given up for it.
        """
        while (at := self.next) is not None and at <= now:
            entry = heappop(self._heap)
            if entry.kind == "deadline" or entry.request.state is State.QUEUED:
                yield entry.request, entry.kind

    def __len__(self) -> int:
        return len(self._heap)
