from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.accounts import Account
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES, Policy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request
from llmosd.types import Ended, RequestSpec, Sampling


def make_request(number: int, nice: int) -> Request:
    return Request(RequestSpec(f"r{number}", "m", [1], Sampling(), nice=nice), number, 1, number, 0, Account(""))


class QueueMachine(RuleBasedStateMachine):
    """The queue against a list that is sorted each time."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def boot(self, policy: str) -> None:
        self.queue = POLICIES[policy]()
        self.model: list[Request] = []
        self.out: list[Request] = []
        self.count = 0

    @rule(nice=st.integers(-3, 3), times=st.integers(1, 5))
    def add(self, nice: int, times: int) -> None:
        for _ in range(times):
            request = make_request(self.count, nice)
            self.count += 1
            self._enter(request)

    @rule()
    def take_head(self) -> None:
        if self.model:
            head = self.queue.head()
            assert head is not None
            self._leave(head)

    @rule(place=st.integers(0, 20))
    def remove(self, place: int) -> None:
        if self.model:
            self._leave(self.model[place % len(self.model)])

    @rule(place=st.integers(0, 20), nice=st.integers(-3, 3))
    def bring_back(self, place: int, nice: int) -> None:
        if self.out:
            request = self.out.pop(place % len(self.out))
            request.nice = nice
            self._enter(request)

    def _enter(self, request: Request) -> None:
        self.queue.add(request)
        self.model.append(request)

    def _leave(self, request: Request) -> None:
        self.queue.remove(request)
        self.model.remove(request)
        self.out.append(request)

    @invariant()
    def same_as_sorted(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.check()
        in_order = sorted(self.model, key=self.queue.rank)
        assert len(self.queue) == len(in_order)
        assert self.queue.head() is (in_order[0] if in_order else None)
        assert [self.queue.position(request) for request in in_order] == list(range(1, len(in_order) + 1))


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_policies_have_the_names_they_are_listed_under() -> None:
    assert all(make().name == name for name, make in POLICIES.items())


def finish_order(policy: str, nices: list[int]) -> list[str]:
    """Equal requests, one slot: the order in which they end is the order in which the policy lets them run."""
    clock = ManualClock()
    kernel = Kernel(Limits(1, 8, 100, 64, 4, 64), POLICIES[policy]())
    executor = CostModelExecutor(CostModel(10, 1, 1, 0), lambda _: 3, clock)
    for number, nice in enumerate(nices):
        kernel.submit(RequestSpec(f"r{number}", "m", [1] * 5, Sampling(), nice=nice), clock.now)
    ended = []
    while plan := kernel.plan(clock.now):
        events = kernel.commit(plan, executor.execute(plan), clock.now)
        ended += [event.request.id for event in events if isinstance(event, Ended)]
    return ended


def test_policies_differ() -> None:
    assert finish_order("fcfs", [5, 0, -5, 0]) == ["r0", "r1", "r2", "r3"]
    assert finish_order("priority", [5, 0, -5, 0]) == ["r2", "r1", "r3", "r0"]


class CountedNumber(int):
    """An arrival number that counts how often it is compared."""

    compared = 0

    def __neg__(self) -> CountedNumber:
        return CountedNumber(super().__neg__())

    def __lt__(self, other: int) -> bool:
        CountedNumber.compared += 1
        return super().__lt__(other)


def counted(policy: type[Policy]) -> Policy:
    class Counted(policy):  # type: ignore[misc,valid-type]
        def rank(self, request: Request) -> Rank:
            *parts, number = super().rank(request)
            return (*parts, CountedNumber(number))

    return Counted()


def work_of_planning(policy: type[Policy], waiting: int, steps: int = 60) -> tuple[int, int]:
    """Comparisons of waiting requests, and calls made by the package, in `steps` plans with a queue of this length.

    Requests run, end, get preempted for pages and are admitted in these steps.
    """
    clock = ManualClock()
    kernel = Kernel(Limits(8, 32, waiting + 50, 64, 4, 40), counted(policy))
    executor = CostModelExecutor(CostModel(10, 1, 1, 0), lambda _: 24, clock)
    for number in range(waiting + 50):
        kernel.submit(RequestSpec(f"r{number}", "m", [1] * 3, Sampling(max_tokens=30)), clock.now)
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call") and frame.f_globals["__name__"].startswith("llmosd")

    CountedNumber.compared = 0
    for _ in range(steps):
        sys.setprofile(count)
        try:
            plan = kernel.plan(clock.now)
        finally:
            sys.setprofile(None)
        assert plan is not None
        kernel.commit(plan, executor.execute(plan), clock.now)
    stats = kernel.stats(False)
    assert stats.finished > 8
    assert stats.preemptions > 0
    return CountedNumber.compared, calls


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_planning_costs_the_same_however_long_the_queue(policy: str) -> None:
    """Counted, not timed: only a bisection for each admission and preemption may show."""
    compared, calls = work_of_planning(POLICIES[policy], 100)
    compared_longer, calls_longer = work_of_planning(POLICIES[policy], 3000)
    assert compared_longer <= 2 * compared + 100
    assert calls_longer <= 1.05 * calls
