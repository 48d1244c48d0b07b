"""Several models behind one face: requests go where their model is, and each step serves one."""

from __future__ import annotations

import pytest

from llmosd.errors import InvalidRequest, NotFound
from llmosd.system.kernel import Kernel
from llmosd.system.kernels import Kernels
from llmosd.system.policy import POLICIES
from llmosd.types import Output, RequestSpec, Sampling, State, StateChanged
from tests.system.symbolic import SymbolicExecutor, expected_tokens
from tests.system.world import make_limits


class Two:
    """Models of different page sizes and their executors."""

    def __init__(self, policy: str = "fcfs") -> None:
        kernels = [
            Kernel(make_limits(page_tokens=size), POLICIES[policy](), model=name) for name, size in (("a", 4), ("b", 3))
        ]
        self.executors = {kernel.model: SymbolicExecutor(kernel) for kernel in kernels}
        self.kernels = Kernels(*kernels)
        self.specs: dict[str, RequestSpec] = {}
        self.tokens: dict[str, list[int]] = {}
        self.now = 0
        self.served = ""

    def submit(self, id: str, model: str, max_tokens: int = 6, nice: int = 0) -> None:
        spec = RequestSpec(id, model, [1, 2, 3, len(id)], Sampling(max_tokens=max_tokens, ignore_eos=True), nice=nice)
        self.kernels.submit(spec, self.now)
        self.specs[id] = spec

    def step(self) -> None:
        plan = self.kernels.plan(self.now)
        assert plan is not None
        self.served += plan.model
        result = self.executors[plan.model].execute(plan)
        self.now += 10
        for event in self.kernels.commit(plan, result, self.now):
            if isinstance(event, Output):
                self.tokens.setdefault(event.id, []).extend(event.tokens)
        self.kernels.check()


def test_both_models_end_with_what_they_would_say_alone() -> None:
    two = Two()
    for number in range(6):
        two.submit(f"r{number}", "ab"[number % 2], max_tokens=3 + number)
    while not two.kernels.idle:
        two.step()
    assert two.kernels.plan(two.now) is None
    for id, spec in two.specs.items():
        assert two.tokens[id] == expected_tokens(spec, 0, spec.sampling.max_tokens or 0)
    assert two.served.startswith("abab")
    stats = two.kernels.stats(True)
    assert (stats.finished, stats.generated_tokens, stats.pages_used) == (6, sum(range(3, 9)), 0)
    assert stats.slots == 8


def test_a_request_is_found_wherever_it_is() -> None:
    two = Two()
    two.submit("x", "b")
    two.submit("y", "a")
    assert [two.kernels.view(id).model for id in "xy"] == ["b", "a"]
    assert {view.id for view in two.kernels.views()} == {"x", "y"}
    assert two.kernels.renice("x", 3, 0).nice == 3
    assert two.kernels.suspend("x", 0)[0].state is State.SUSPENDED
    assert two.kernels.resume("x", 0)[0].state is State.QUEUED
    [moved, _] = two.kernels.cancel("x", "a person", 0)
    assert isinstance(moved, StateChanged)
    two.kernels.fail("y", "the engine ends", 0)
    assert two.kernels.idle
    with pytest.raises(NotFound):
        two.kernels.view("x")


def test_ids_are_unique_over_all_models() -> None:
    two = Two()
    two.submit("x", "a")
    with pytest.raises(InvalidRequest):
        two.submit("x", "b")


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound, match="'c'"):
        Two().submit("x", "c")


def test_the_nicer_model_waits_where_the_policy_is_by_priority() -> None:
    two = Two("priority")
    two.submit("x", "a", nice=5)
    two.submit("y", "b", nice=-5)
    while not two.kernels.idle:
        two.step()
    assert two.served.rstrip("a").strip("b") == ""


def test_a_plan_that_is_not_in_flight_is_refused() -> None:
    two = Two()
    two.submit("x", "a")
    plan = two.kernels.plan(0)
    assert plan
    result = two.executors["a"].execute(plan)
    two.kernels.commit(plan, result, 1)
    with pytest.raises(ValueError, match="not the step in flight"):
        two.kernels.commit(plan, result, 2)
