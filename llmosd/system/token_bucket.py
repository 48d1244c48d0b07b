"""Token rates: what a user may spend at once, and on and on. Exact: levels are integers of 10⁻⁹ tokens."""

from __future__ import annotations

from dataclasses import dataclass

from llmosd.types import Nanoseconds, Quota, Quotas

UNIT = 10**9
MINUTE_S = 60
_FEW = 64


@dataclass(slots=True)
class TokenBucket:
    """Fills by `rate` tokens a second up to `burst`; what is taken in a time t is at most burst + rate·t.

    But whoever asks for more than `burst` waits until it is full, and leaves a debt.
    """

    rate: int
    burst: int
    at: Nanoseconds
    units: int = 0  # below 0 after one that was larger than the burst

    def __post_init__(self) -> None:
        self.units = self.burst * UNIT

    def take(self, tokens: int, now: Nanoseconds) -> Nanoseconds:
        """0 where they are taken, else the time until they could be."""
        self._fill(now)
        lack = min(tokens, self.burst) * UNIT - self.units
        if lack > 0:
            return -(-lack // self.rate)
        self.units -= tokens * UNIT
        return 0

    def give_back(self, tokens: int, now: Nanoseconds) -> None:
        """What was taken and is not needed."""
        self._fill(now)
        self.units = min(self.burst * UNIT, self.units + tokens * UNIT)

    def left(self, now: Nanoseconds) -> int:
        self._fill(now)
        return max(0, self.units // UNIT)

    def full_in(self, now: Nanoseconds) -> Nanoseconds:
        self._fill(now)
        return -(-(self.burst * UNIT - self.units) // self.rate)

    def _fill(self, now: Nanoseconds) -> None:
        self.units = min(self.burst * UNIT, self.units + self.rate * (now - self.at))
        self.at = now


class TokenBuckets:
    """One for each user with a token rate, as long as it is not full: a full one is as good as a new one."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._buckets: dict[str, TokenBucket] = {}
        self._prune_at = _FEW

    def of(self, user: str, now: Nanoseconds) -> TokenBucket | None:
        """None where the user's rate has no limit."""
        quota = self._quotas.of(user)
        if not quota.tokens_per_s:
            return None
        if user not in self._buckets:
            self._prune(now)
            self._buckets[user] = _new(quota, now)
        return self._buckets[user]

    def _prune(self, now: Nanoseconds) -> None:
        if len(self._buckets) >= self._prune_at:
            self._buckets = {user: bucket for user, bucket in self._buckets.items() if bucket.full_in(now)}
            self._prune_at = max(_FEW, 2 * len(self._buckets))

    def __len__(self) -> int:
        return len(self._buckets)


def _new(quota: Quota, now: Nanoseconds) -> TokenBucket:
    return TokenBucket(quota.tokens_per_s, quota.burst or MINUTE_S * quota.tokens_per_s, now)
