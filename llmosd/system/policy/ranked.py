"""A queue in rank order that is never scanned or sorted: a list kept sorted by bisection, its head at the end."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import pairwise

from llmosd.system.request import Request

Rank = tuple[int, ...]


class RankedQueue:
    """Waiting requests by rank, the smallest first. Ranks are unique and change only between `remove` and `add`.

    Everything costs O(log waiting) comparisons. The list is in reverse, so that planning, which works at the head,
    moves next to nothing; a submission moves at most one pointer for each request that waits.
    """

    def __init__(self, rank: Callable[[Request], Rank]) -> None:
        self._rank = rank
        self._order: list[Rank] = []  # negated ranks, ascending: the head is the last
        self._requests: dict[Rank, Request] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return iter(self._requests.values())

    def __contains__(self, request: Request) -> bool:
        return self._requests.get(self._key(request)) is request

    def add(self, request: Request) -> None:
        key = self._key(request)
        insort(self._order, key)
        self._requests[key] = request

    def remove(self, request: Request) -> None:
        key = self._key(request)
        del self._requests[key]
        del self._order[bisect_left(self._order, key)]

    def head(self) -> Request | None:
        return self._requests[self._order[-1]] if self._order else None

    def position(self, request: Request) -> int:
        """Place in the queue from 1; of one that is not in it, how many are before it."""
        return len(self._order) - bisect_left(self._order, self._key(request))

    def count(self, goes_before: Callable[[Request], bool]) -> int:
        """How many from the head on are so; whoever is before one that is so has to be so too."""
        return len(self._order) - bisect_left(self._order, True, key=lambda key: goes_before(self._requests[key]))

    def check(self) -> None:
        assert all(one < next_one for one, next_one in pairwise(self._order)), "the queue is out of order"
        assert self._requests.keys() == set(self._order), "the queue lost a request"
        assert all(key == self._key(request) for key, request in self._requests.items()), "a rank changed while waiting"

    def _key(self, request: Request) -> Rank:
        return tuple([-part for part in self._rank(request)])
