"""Queued time by reason: against a count that looks at every request, at every moment."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.errors import ContextTooLong, QueueFull
from llmosd.system.policy import POLICIES
from llmosd.system.timeline import MOST, extended
from llmosd.system.waiting import PrefixTimes, WaitClock
from llmosd.types import Plan, QueuedTime, Quota, Quotas, State, WaitReason
from tests.system.world import World, make_limits


class Watched(World):
    """Asks, whenever time passes, why each queued request waits."""

    blocked: tuple[WaitReason, int] = WaitReason.STEP, -1  # why the head waits, and its number

    def watch(self) -> None:
        self.waited: dict[str, Counter[WaitReason]] = defaultdict(Counter)

    def step(self, took: int = 1, admit: bool = True) -> Plan | None:
        build = self.kernel._scheduler.build

        def seen(*arguments: object) -> object:
            draft = build(*arguments)  # type: ignore[arg-type]
            head = self.kernel.policy.head() if admit else None
            if not admit:
                reason = WaitReason.MODEL
            elif head and not self._slots_for(len(head.live)):
                reason = WaitReason.SLOTS
            else:
                reason = WaitReason.STEP if head is None or draft.full else WaitReason.PAGES
            self.blocked = reason, head.number if head else -1
            self._wait(took)
            return draft

        self.kernel._scheduler.build = seen  # type: ignore[method-assign]
        try:
            return super().step(took, admit)
        finally:
            self.kernel._scheduler.build = build  # type: ignore[method-assign]

    def _slots_for(self, sequences: int) -> bool:
        cap = self.kernel.policy.cap if self.kernel.running else None
        free = self.kernel._table.free_rows
        return sequences <= free and (not cap or self.limits.slots - free + sequences <= cap)

    def wait(self, took: int) -> None:
        self._wait(took)
        super().wait(took)

    def _wait(self, took: int) -> None:
        reason, head = self.blocked
        for request in self.kernel._requests.values():
            if request.state is State.QUEUED:
                parked = request in self.kernel.policy._parked
                overtaken = WaitReason.POLICY if head > request.number else reason
                self.waited[request.id][WaitReason.QUOTA if parked else overtaken] += took

    def check_waits(self) -> None:
        for id, life in self.oracle.lives.items():
            by = life.final.times.queued_by
            assert by == QueuedTime(*(self.waited[id][reason] for reason in WaitReason)), id


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(4))
def test_every_nanosecond_has_the_reason_that_was_true_of_it(policy: str, seed: int) -> None:
    random = Random(seed)
    quotas = Quotas(users={"a": Quota(running=2), "b": Quota(pages=9)})
    pages, slots = ((16, 8), (60, 3))[seed % 2]
    world = Watched(make_limits(slots=slots, token_budget=12, pages=pages), policy, quotas=quotas)
    world.watch()
    for _ in range(250):
        if random.random() < 0.5:
            with suppress(ContextTooLong, QueueFull):
                nice = random.randint(-9, 9)
                world.submit(random.randint(1, 20), random.randint(2, 12), user=random.choice("abcd"), nice=nice)
        if random.random() < 0.2 and (live := world.oracle.live):
            id = random.choice(live)
            random.choice((world.suspend, world.resume, world.cancel))(id)
        if random.random() < 0.1 and (live := world.oracle.live):
            world.renice(random.choice(live), random.randint(-20, 19))
        if random.random() < 0.3:
            world.wait(random.randint(0, 50))
        world.step(random.randint(0, 100), admit=random.random() < 0.9 or not world.kernel.running)
    for id in world.oracle.live:
        world.resume(id)
    while not world.kernel.idle:
        world.step(random.randint(0, 100))
    world.check_waits()
    known = sum((waited for waited in world.waited.values()), Counter())
    assert known[WaitReason.QUOTA] and known[WaitReason.MODEL] and known[(WaitReason.PAGES, WaitReason.SLOTS)[seed % 2]]
    assert known[WaitReason.POLICY] or policy not in ("priority", "fair", "sjf"), "nobody was overtaken"


def test_who_finds_no_slot_waits_for_one_and_who_is_overtaken_for_the_policy() -> None:
    world = World(make_limits(slots=1), policy="priority")
    first, patient = world.submit(2, 4, nice=-9), world.submit(2, 2, nice=5)
    world.step(10)
    assert world.kernel.view(patient).waits_for == "slots"
    urgent = world.submit(2, 2, nice=-5)
    world.step(10)
    assert [world.kernel.view(id).waits_for for id in (urgent, patient)] == ["slots", "policy"]
    world.drain()
    assert world.oracle.lives[first].final.times.queued == 0
    by = world.oracle.lives[patient].final.times.queued_by
    assert (by.slots, by.policy) == (10 + 2, 10 + 2), "until it was overtaken and after; while the urgent one waited"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 9)), max_size=80))
def test_prefix_times_are_sums(steps: list[tuple[bool, int, int]]) -> None:
    times, plain = PrefixTimes(), list[int]()
    for append, count, ns in steps:
        if append:
            times.append()
            plain.append(0)
        else:
            count = min(count, len(plain))
            times.add(count, ns)
            plain = [time + ns if place < count else time for place, time in enumerate(plain)]
    assert [times.get(place) for place in range(1, len(plain) + 1)] == plain
    again = PrefixTimes(plain)
    assert [again.get(place) for place in range(1, len(plain) + 1)] == plain


def test_the_clock_keeps_no_more_than_twice_what_is_live() -> None:
    clock, kept = WaitClock(), 10
    for number in range(5000):
        clock.register(number)
        clock.tell(WaitReason.SLOTS, number, number)
        if number >= kept:
            clock.forget(number - kept)
        reading = clock.read(number - min(number, kept - 1), number)
        assert sum(reading) == number
        assert QueuedTime(*reading).policy == max(0, min(number, kept - 1) - 1), "since the next one went before it"
    assert len(clock._numbers) < 200


def test_a_timeline_is_bounded_and_keeps_its_ends() -> None:
    timeline = ()
    for at in range(1000):
        timeline = extended(timeline, State.PREFILL if at % 2 else State.PREEMPTED, at)
    assert len(timeline) == MOST
    assert timeline[:2] == (("preempted", 0), ("prefill", 1)) and timeline[-1] == ("prefill", 999)
    [(place, several)] = [(place, at) for place, (name, at) in enumerate(timeline) if name == "several"]
    assert several == place and timeline[place + 1][1] == 1000 - (MOST - place - 1)
