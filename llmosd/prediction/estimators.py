"""What is measured over the last seconds: percentiles of latencies, and Little's L, λ, W beside μ.

Times are integer nanoseconds of one monotonic clock and come in as arguments. All memory is bounded by the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, exp, log

from llmosd.types import Nanoseconds, RequestId

SECOND: Nanoseconds = 1_000_000_000
GAMMA = 1.02  # ratio of neighbouring bucket bounds: a percentile is within 1 % of a value that was seen
SMALLEST = 1e-9  # values below it count as it
_LOG_GAMMA = log(GAMMA)
_MIDDLE = 2 / (1 + GAMMA)  # times a bucket's upper bound: the value of least relative error within it


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest of the `ordered` values that at least the share `q` (0 < q ≤ 1) of them does not exceed."""
    return ordered[max(0, ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the samples in a window; `percentiles` stand in the order they were asked for, None without a sample."""

    count: int
    mean: float | None
    percentiles: tuple[float | None, ...]


class LatencyWindow:
    """Distribution of values ≥ 0 over the last `seconds`, in one logarithmic histogram per second.

    Percentiles have a relative error of at most 1 % (buckets as in DDSketch: Masson, Rim and Lee, 2019); count, sum and
    mean are exact. Adding is constant time; a summary touches some hundred buckets however many samples there are.
    """

    def __init__(self, seconds: int = 60) -> None:
        self._seconds = seconds
        self._slots: deque[_Slot] = deque()

    def add(self, value: float, now: Nanoseconds, times: int = 1) -> None:
        second = now // SECOND
        if not self._slots or self._slots[-1].second < second:
            self._drop(second)
            self._slots.append(_Slot(second))
        self._slots[-1].add(value, times)

    def total(self, now: Nanoseconds) -> float:
        self._drop(now // SECOND)
        return sum(slot.total for slot in self._slots)

    def summary(self, now: Nanoseconds, *qs: float) -> Summary:
        """Of what lies at most the window's length back; a second counts as a whole."""
        self._drop(now // SECOND)
        count = sum(slot.count for slot in self._slots)
        if not count:
            return Summary(0, None, (None,) * len(qs))
        mean = sum(slot.total for slot in self._slots) / count
        if not qs:
            return Summary(count, mean, ())
        merged: dict[int, int] = {}
        for slot in self._slots:
            for bucket, times in slot.buckets.items():
                merged[bucket] = merged.get(bucket, 0) + times
        return Summary(count, mean, tuple(_percentile(merged, count, q) for q in qs))

    def _drop(self, second: int) -> None:
        while self._slots and self._slots[0].second <= second - self._seconds:
            self._slots.popleft()


class _Slot:
    __slots__ = ("buckets", "count", "second", "total")

    def __init__(self, second: int) -> None:
        self.second = second
        self.count = 0
        self.total = 0.0
        self.buckets: dict[int, int] = {}

    def add(self, value: float, times: int) -> None:
        self.count += times
        self.total += value * times
        bucket = ceil(log(value if value > SMALLEST else SMALLEST) / _LOG_GAMMA)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + times


def _percentile(buckets: dict[int, int], count: int, q: float) -> float:
    rank = max(1, ceil(q * count))
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            break
    return exp(bucket * _LOG_GAMMA) * _MIDDLE


@dataclass(frozen=True, slots=True)
class QueueMeasures:
    """Over `window_s` seconds, all counted from arrival (not from the next step): see `QueueMeter`."""

    window_s: float
    arrivals: int
    completions: int
    arrival_rate: float | None  # λ, per second
    service_rate: float | None  # μ, per second of busy time
    in_system: float | None  # L
    time_in_system: float | None  # W, seconds
    time_queued: float | None  # Wq, seconds

    @property
    def little(self) -> float | None:
        """L/(λW): 1 for a stable system over a long window, whatever its order and distributions (Little, 1961)."""
        if not self.in_system or not self.arrival_rate or not self.time_in_system:
            return None
        return self.in_system / (self.arrival_rate * self.time_in_system)


class QueueMeter:
    """Measures λ, μ, L, W and Wq over a sliding window, from when requests arrive and leave.

    - λ: arrivals in the window / its length.
    - L: time average of the number in the system, each request counted from its arrival until it leaves.
    - W, Wq: means over the requests that left in the window; those cancelled and failed count too, they were there.
    - μ: departures / the time in which at least one request was in the system ("busy time"). By the utilisation law
      λ/μ is then the busy share of the time as long as the system keeps up, as ρ is in M/M/1, and exceeds 1 when it
      does not. The inverse of one lone request's latency would be far below what a batching server can complete.

    Until a whole window has passed since `start`, the window is what has passed.
    """

    def __init__(self, start: Nanoseconds, seconds: int = 120) -> None:
        self._start = start
        self._window = seconds * SECOND
        self._here: dict[RequestId, Nanoseconds] = {}
        self._left: deque[tuple[Nanoseconds, Nanoseconds, Nanoseconds]] = deque()  # arrived, left, queued

    def arrive(self, request: RequestId, arrived: Nanoseconds) -> None:
        self._here[request] = arrived

    def leave(self, request: RequestId, now: Nanoseconds, queued: Nanoseconds) -> None:
        """Ignores a request that never arrived."""
        if (arrived := self._here.pop(request, None)) is not None:
            self._left.append((arrived, now, queued))

    def measure(self, now: Nanoseconds) -> QueueMeasures:
        begin = max(self._start, now - self._window)
        length = now - begin
        while self._left and self._left[0][1] <= begin:
            self._left.popleft()
        stays = [(arrived, left) for arrived, left, _ in self._left] + [(at, now) for at in self._here.values()]
        arrivals = sum(arrived >= begin for arrived, _ in stays)
        if length <= 0:
            return QueueMeasures(0.0, arrivals, 0, None, None, None, None, None)
        stays = [(max(arrived, begin), left) for arrived, left in stays]
        gone, busy = len(self._left), _covered(stays)
        return QueueMeasures(
            window_s=length / SECOND,
            arrivals=arrivals,
            completions=gone,
            arrival_rate=arrivals * SECOND / length,
            service_rate=gone * SECOND / busy if gone and busy else None,
            in_system=sum(left - arrived for arrived, left in stays) / length,
            time_in_system=sum(left - arrived for arrived, left, _ in self._left) / gone / SECOND if gone else None,
            time_queued=sum(queued for _, _, queued in self._left) / gone / SECOND if gone else None,
        )


def _covered(intervals: Iterable[tuple[Nanoseconds, Nanoseconds]]) -> Nanoseconds:
    """Length of the union of intervals."""
    covered, reached = 0, 0
    for begin, end in sorted(intervals):
        if end > reached:
            covered += end - max(begin, reached)
            reached = end
    return covered
