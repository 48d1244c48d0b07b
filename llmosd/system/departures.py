"""How fast requests finish, from those that did."""

from __future__ import annotations

from collections import deque

from llmosd.types import Nanoseconds

_WINDOW: Nanoseconds = 60 * 10**9


class Departures:
    """Measures at which rate requests finish, over the last minute or since there was work, whichever is shorter."""

    def __init__(self) -> None:
        self._times: deque[Nanoseconds] = deque()
        self._busy_since: Nanoseconds = 0

    def busy_since(self, now: Nanoseconds) -> None:
        self._busy_since = now

    def add(self, now: Nanoseconds) -> None:
        self._times.append(now)
        self._prune(now)

    def per_s(self, now: Nanoseconds) -> float:
        """Never zero: where none has finished yet, one a window is the most that can be claimed."""
        start = self._prune(now)
        return max(1, len(self._times)) * 1e9 / max(1, now - start)

    def _prune(self, now: Nanoseconds) -> Nanoseconds:
        """Forget what lies before the window; returns where it starts."""
        start = max(now - _WINDOW, self._busy_since)
        while self._times and self._times[0] < start:
            self._times.popleft()
        return start
