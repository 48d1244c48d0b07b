"""Why requests wait, and for how long: the queue's clock stands still for one reason from each plan to the next.

The plan says why the head of the queue is not admitted. All that wait do so for that reason, but for two kinds: who is
parked waits for its user's quota, and who came before the head waits for the policy, which lets others go first.
Nothing is scanned: a plan costs O(log live), and so does a request when it enters or leaves the queue.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from llmosd.types import Nanoseconds, QueuedTime, WaitReason

_REASONS = tuple(WaitReason)
_BLOCKING = (WaitReason.SLOTS, WaitReason.PAGES, WaitReason.MODEL, WaitReason.STEP)  # what a plan can say
_PLACE = {reason: place for place, reason in enumerate(_REASONS)}
_POLICY, _QUOTA = _PLACE[WaitReason.POLICY], _PLACE[WaitReason.QUOTA]
_SLACK = 64

Reading = list[Nanoseconds]
"""Times by reason, in the order of WaitReason."""


class PrefixTimes:
    """Times of places 1, 2, …: added to the first so many, read for one, O(log n) each.

    A Fenwick tree of differences (Fenwick, 1994): a place's time is the sum along its path.
    """

    def __init__(self, times: Sequence[Nanoseconds] = ()) -> None:
        self._tree = [0] * (1 + len(times))
        for count, (time, after) in enumerate(pairwise([*times, 0]), 1):
            self.add(count, time - after)

    def append(self) -> None:
        """One more place, of time 0."""
        self._tree.append(0)

    def add(self, count: int, ns: Nanoseconds) -> None:
        while count > 0:
            self._tree[count] += ns
            count &= count - 1

    def get(self, place: int) -> Nanoseconds:
        total, end = 0, len(self._tree)
        while place < end:
            total += self._tree[place]
            place += place & -place
        return total


class WaitClock:
    """Time since the start by what the queue waited for, as each request sees it. Requests are known by number."""

    def __init__(self) -> None:
        self.reason = WaitReason.STEP
        self._head = 0  # number of the request that the reason is of
        self._since: Nanoseconds = 0
        self._totals = dict.fromkeys(_BLOCKING, 0)
        self._numbers: list[int] = []  # in order; of requests that have not run, and of some that have
        self._done: set[int] = set()  # of these, those that have run
        self._overtaken = {reason: PrefixTimes() for reason in _BLOCKING}  # by place in `_numbers`

    def tell(self, reason: WaitReason, head: int, now: Nanoseconds) -> None:
        """From now on the queue waits for this, whose head is the request of that number (0 where it does not say)."""
        if passed := now - self._since:
            self._totals[self.reason] += passed
            self._overtaken[self.reason].add(bisect_left(self._numbers, self._head), passed)
        self.reason, self._head, self._since = reason, head, now

    def register(self, number: int) -> None:
        """A request enters the table; numbers come in order."""
        self._numbers.append(number)
        for times in self._overtaken.values():
            times.append()

    def forget(self, number: int) -> None:
        """It will not be queued again."""
        self._done.add(number)
        if len(self._done) > _SLACK + len(self._numbers) // 2:
            kept = [(place, number) for place, number in enumerate(self._numbers, 1) if number not in self._done]
            for reason, times in self._overtaken.items():
                self._overtaken[reason] = PrefixTimes([times.get(place) for place, _ in kept])
            self._numbers = [number for _, number in kept]
            self._done.clear()

    def read(self, number: int, now: Nanoseconds) -> Reading:
        """For a registered one: time since the start by reason; the sum is `now`."""
        place = 1 + bisect_left(self._numbers, number)
        reading = [0] * len(_REASONS)
        for reason, times in self._overtaken.items():
            overtaken = times.get(place)
            reading[_PLACE[reason]] = self._totals[reason] - overtaken
            reading[_POLICY] += overtaken
        reading[_PLACE[self.reason_of(number)]] += now - self._since
        return reading

    def reason_of(self, number: int) -> WaitReason:
        """Why a request of this number waits now, parked ones left out."""
        return WaitReason.POLICY if self._head > number else self.reason


class Wait:
    """Queued time of one request by reason. It stands in the queue, is parked, or neither."""

    def __init__(self, clock: WaitClock, number: int) -> None:
        clock.register(number)
        self.clock = clock
        self._number = number
        self._registered = True
        self._spent = [0] * len(_REASONS)
        self._entered: Reading | None = None
        self._parked: Nanoseconds | None = None

    def add(self, times: QueuedTime) -> None:
        """What it has waited elsewhere."""
        self._spent = [spent + getattr(times, reason) for spent, reason in zip(self._spent, _REASONS, strict=True)]

    def start(self, now: Nanoseconds) -> None:
        self._entered = self.clock.read(self._number, now)

    def stop(self, now: Nanoseconds) -> None:
        self._spent = self._by(now)
        self._entered = self._parked = None

    def leave(self) -> None:
        """It will not be queued again."""
        if self._registered:
            self._registered = False
            self.clock.forget(self._number)

    def park(self, now: Nanoseconds) -> None:
        """It waits for its user's quota; nothing where it is not queued but preempted."""
        if self._entered is not None:
            self.stop(now)
            self._parked = now

    def unpark(self, now: Nanoseconds) -> None:
        if self._parked is not None:
            self.stop(now)
            self.start(now)

    def _by(self, now: Nanoseconds) -> Reading:
        if self._entered is not None:
            reading = self.clock.read(self._number, now)
            changes = zip(self._spent, reading, self._entered, strict=True)
            return [spent + after - before for spent, after, before in changes]
        if self._parked is not None:
            spent = list(self._spent)
            spent[_QUOTA] += now - self._parked
            return spent
        return self._spent

    def times(self, now: Nanoseconds) -> QueuedTime:
        return QueuedTime(*self._by(now))
