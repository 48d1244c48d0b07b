"""How long answers will be: the median of what a user's last ones were, as far as there are enough of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque

REMEMBERED = 64  # answers of each user
ENOUGH = 8
USERS = 256  # who are told apart: those with the latest answers


class Recent:
    """The median of the last answers, in O(log n) each."""

    def __init__(self, size: int) -> None:
        self._last = deque[int](maxlen=size)
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._last)

    def add(self, tokens: int) -> None:
        if len(self._last) == self._last.maxlen:
            del self._sorted[bisect_left(self._sorted, self._last[0])]
        self._last.append(tokens)
        insort(self._sorted, tokens)

    @property
    def median(self) -> int:
        return self._sorted[len(self._sorted) // 2]


class MedianLength:
    """A `LengthEstimate`. A median, for lengths have heavy tails: one long answer says little of the next.

    Users with fewer than `ENOUGH` answers are taken to be like all others; without any answers, all that is asked for.
    """

    def __init__(self) -> None:
        self._all = Recent(4 * REMEMBERED)
        self._users: OrderedDict[str, Recent] = OrderedDict()

    def tokens(self, user: str, most: int) -> int:
        recent = self._users.get(user)
        if recent is None or len(recent) < ENOUGH:
            recent = self._all
        return min(most, recent.median) if len(recent) else most

    def observe(self, user: str, tokens: int) -> None:
        if user not in self._users and len(self._users) == USERS:
            self._users.popitem(last=False)
        self._users.setdefault(user, Recent(REMEMBERED)).add(tokens)
        self._users.move_to_end(user)
        self._all.add(tokens)
