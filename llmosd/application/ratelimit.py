"""How many events a second may go to subscribers."""

from __future__ import annotations

PER_S, BURST = 4.0, 8.0
RESERVE = BURST / 2  # `info` leaves this to warnings and errors


class EventRate:
    """A token bucket. Times are seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._tokens = BURST
        self._then = now

    def allow(self, severity: str, now: float) -> bool:
        self._tokens = min(BURST, self._tokens + (now - self._then) * PER_S)
        self._then = now
        if self._tokens < 1 + (RESERVE if severity == "info" else 0):
            return False
        self._tokens -= 1
        return True
