"""Models come and go under one memory budget: everybody is served, nothing is ever larger than the budget."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from llmosd.errors import ContextTooLong, DoesNotFit, InvalidRequest, QueueFull
from llmosd.system.kernel import Limits
from llmosd.system.policy import POLICIES
from llmosd.system.residency import ModelSize
from llmosd.types import EvictionMode, Loaded, LoadFailed, State, StateChanged, Unloaded
from tests.system.residency_world import MINIMUM, PATIENCE, ManyModels
from tests.system.world import make_limits

SMALL = make_limits(context=16, pages=8)  # least 4 pages
SIZE = ModelSize(weights=50, workspace=10, page=5, least=4)  # 80 … 100 bytes


def two(budget: int = 150, limits: Limits = SMALL, **kwargs: Any) -> ManyModels:
    return ManyModels([limits, limits], [SIZE, SIZE], budget, **kwargs)


def run(world: ManyModels, took: int = 1) -> None:
    while world.live:
        assert world.step(took)


def changes(world: ManyModels) -> str:
    """a for a load of a, A for an unload."""
    named = {Loaded: str.lower, Unloaded: str.upper}
    return "".join(named[type(e)](e.model) for e in world.events if isinstance(e, Loaded | Unloaded))


def test_a_model_is_loaded_when_it_is_asked_for() -> None:
    world = two(budget=200)
    assert world.resident() == ""
    world.submit("b")
    assert world.step().loads
    assert world.resident() == "b"
    world.submit("a")
    run(world)
    assert (world.resident(), changes(world)) == ("ab", "ba")
    world.drain()


def test_models_that_fit_together_share_time_and_memory() -> None:
    world = two(budget=180)
    world.submit("a", max_tokens=8)
    world.step()
    assert world.kernels.kernel("a").pool.total == 8, "alone it has all it can use"
    world.submit("b", max_tokens=8)
    run(world)
    assert [world.kernels.kernel(name).pool.total for name in "ab"] == [6, 6]
    assert "abab" in world.served
    assert changes(world) == "ab"


def test_an_idle_model_makes_room_at_once() -> None:
    world = two()
    for turn in range(4):
        world.submit("ab"[turn % 2])
        run(world)
    assert changes(world) == "aAbBaAb"
    world.drain()


def test_a_busy_model_has_its_time_then_ends_what_runs_then_gives_way() -> None:
    """Both are always asked for more: each gets its minimum, and a bounded time more."""
    world = two()
    for _ in range(600):
        for model in "ab":
            if world.kernels.kernel(model).running + len(world.kernels.kernel(model).policy) < 4:
                world.submit(model, prompt=2, max_tokens=5)
        world.step()
    stays = [event.now for event in world.events if isinstance(event, Loaded)]
    gaps = [later - earlier for earlier, later in pairwise(stays)]
    assert len(gaps) > 8
    assert all(MINIMUM <= gap <= MINIMUM + PATIENCE + 10 for gap in gaps)
    world.drain()


def test_what_does_not_end_in_time_is_preempted_and_goes_on_later() -> None:
    limits = make_limits(context=200, pages=60)
    size = replace(SIZE, page=1, least=50)
    world = ManyModels([limits, limits], [size, size], 150)
    long = world.submit("a", prompt=4, max_tokens=150)
    world.step()
    world.submit("b", max_tokens=100)
    run(world)
    moved = [e for e in world.events if isinstance(e, StateChanged) and e.id == long and e.is_preemption]
    assert moved
    assert {event.reason for event in moved} == {"unload"}
    assert changes(world).startswith("aAbBa")
    world.drain()


def test_the_least_recently_used_goes_first_and_pinned_ones_stay() -> None:
    for pinned, gone in (("", "a"), ("a", "b")):
        world = ManyModels([SMALL] * 3, [SIZE] * 3, 180, pinned=pinned)
        for model in "abc":
            world.submit(model)
            run(world)
        assert changes(world) == f"ab{gone.upper()}c"


def test_an_idle_model_is_unloaded_when_its_time_is_over() -> None:
    world = two(keep_alive=100)
    world.submit("a")
    run(world)
    assert world.residency.wake_at() == world.now + 100
    assert world.step() is None
    world.now += 99
    assert world.step() is None
    world.now += 1
    assert world.step().unloads == ("a",)
    [gone] = [event for event in world.events if isinstance(event, Unloaded)]
    assert gone.reason == "idle"
    assert world.residency.wake_at() is None
    assert world.residency.table.used == 0


def test_a_pool_shrinks_for_another_model_and_grows_back() -> None:
    world = two(budget=170, keep_alive=50)
    pool = world.kernels.kernel("a").pool
    world.submit("a")
    run(world)
    assert pool.total == 8
    world.submit("b")
    run(world)
    assert pool.total == 5
    world.submit("a")
    run(world)
    world.now = world.residency.wake_at()
    while plan := world.step():
        assert plan.unloads or plan.resizes
    assert pool.total == 8
    assert world.resident() == "a"


def test_a_person_loads_and_unloads_without_a_request() -> None:
    world = two(keep_alive=100)
    assert not world.kernels.load("a", world.now).resident
    assert world.residency.wake_at() == 0
    assert world.step().loads
    assert world.kernels.load("a", world.now).resident, "it is there already"
    world.kernels.load("b", world.now)
    while world.residency.wake_at() == 0:
        assert world.step()
    assert changes(world) == "aAb", "as for a request"
    world.now += 99
    world.kernels.load("b", world.now)
    assert world.residency.wake_at() == world.now + 100, "it counts as use"
    world.kernels.unload("b")
    assert world.step().unloads == ("b",)
    [*_, gone] = [event for event in world.events if isinstance(event, Unloaded)]
    assert (gone.model, gone.reason) == ("b", "asked")
    assert not world.kernels.unload("b").resident
    assert world.step() is None


def test_a_model_is_unloaded_when_its_requests_have_ended_unless_it_is_wanted_again() -> None:
    world = two(budget=200)
    ids = [world.submit("a", max_tokens=10) for _ in range(6)]  # more than there are slots
    kept = world.submit("a", max_tokens=10)
    world.step()
    world.suspend(kept)
    world.kernels.unload("a")
    while world.resident() or world.state(ids[-1]) is State.QUEUED:
        world.step()
    assert all(world.state(id) is State.FINISHED for id in ids), "who waited, too"
    assert world.state(kept) is State.SUSPENDED
    world.resume(kept)
    world.step()
    world.kernels.unload("a")
    world.kernels.load("a", world.now)
    run(world)
    assert (changes(world), world.resident()) == ("aAa", "a")
    world.drain()


def test_a_pinned_model_is_not_unloaded() -> None:
    world = two(budget=180, pinned="a")
    world.kernels.load("a", 0)
    world.step()
    with pytest.raises(InvalidRequest, match="a is pinned"):
        world.kernels.unload("a")
    assert world.step() is None


def test_a_load_that_fails_is_over() -> None:
    world = two()
    world.broken.add("b")
    world.kernels.load("b", 0)
    world.step()
    assert [event.error for event in world.events if isinstance(event, LoadFailed)] == ["it is broken"]
    assert world.step() is None


def preempted(world: ManyModels) -> list[str]:
    return [e.id for e in world.events if isinstance(e, StateChanged) and e.is_preemption]


@pytest.mark.parametrize("prefixes", [False, True])
def test_pages_in_use_move_out_of_the_way_of_another_model(prefixes: bool) -> None:
    world = two(budget=170, prefixes=prefixes)
    first = world.submit("a", prompt=9, max_tokens=2)
    kept = world.submit("a", prompt=6, max_tokens=5, n=2)
    while world.state(first) is not State.FINISHED:
        world.step()
    used = world.kernels.kernel("a").stats(False).pages_used
    assert world.kernels.kernel("a").pool.total == 8 and used <= 5
    world.submit("b")
    plan = world.step()
    assert plan.loads and world.moved, "at once"
    assert plan.resizes[0].copies
    run(world)
    assert world.state(kept) is State.FINISHED
    assert (preempted(world), changes(world)) == ([], "ab")
    world.drain()


def test_where_pages_find_no_place_as_few_are_preempted_as_it_takes() -> None:
    limits = make_limits(context=48, pages=24)
    size = ModelSize(weights=20, workspace=0, page=5, least=8)
    world = ManyModels([limits, limits], [size, size], 160)
    ids = [world.submit("a", prompt=11, max_tokens=20) for _ in range(4)]
    while world.kernels.kernel("a").stats(False).pages_used < 16:
        world.step()
    world.submit("b", prompt=4, max_tokens=44)
    world.step(took=PATIENCE)
    assert not preempted(world), "before their time is over"
    while world.resident() == "a":
        world.step()
    assert world.kernels.kernel("a").pool.total == 10
    assert preempted(world) == [ids[3], ids[2]], "of four pages each"
    run(world)
    world.drain()


def test_a_request_that_needs_more_than_the_pool_has_gets_it() -> None:
    """Both models are loaded with pools of five pages; one request needs eight: the other model has to go."""
    world = two(budget=170)
    for model in "ab":
        world.submit(model)
    run(world)
    assert world.resident() == "ab"
    large = world.submit("a", prompt=4, max_tokens=12, n=2)
    assert world.kernels.kernel("a").floor > world.kernels.kernel("a").pool.total
    run(world)
    assert world.state(large) is State.FINISHED
    assert changes(world) == "abB"


def test_a_pinned_model_gives_up_all_but_its_least_and_is_given_it_back() -> None:
    world = two(budget=180, pinned="ab")
    first = world.submit("a", prompt=4, max_tokens=12, n=2)
    for _ in range(4):
        world.step()
    second = world.submit("b", prompt=4, max_tokens=12, n=2)
    run(world)
    assert {world.state(first), world.state(second)} == {State.FINISHED}
    assert changes(world) == "ab"
    world.drain()


def test_a_suspended_request_survives_its_model() -> None:
    world = two()
    kept = world.submit("a", max_tokens=10)
    for _ in range(5):
        world.step()
    world.suspend(kept)
    world.submit("b")
    while len(world.live) > 1:
        world.step()
    assert world.resident() == "b"
    world.resume(kept)
    run(world)
    assert changes(world) == "aAbBa"
    world.drain()


def test_a_model_that_cannot_be_loaded_fails_its_requests_alone() -> None:
    world = two()
    world.broken.add("b")
    lost = [world.submit("b"), world.submit("b")]
    kept = world.submit("a")
    run(world)
    assert [world.state(id) for id in (*lost, kept)] == [State.FAILED, State.FAILED, State.FINISHED]
    [failed] = [event for event in world.events if isinstance(event, LoadFailed)]
    assert failed.error == "it is broken"
    world.broken.clear()
    world.submit("b")
    run(world)
    world.drain()


def test_what_does_not_fit_is_refused_with_the_sizes() -> None:
    with pytest.raises(DoesNotFit, match="b needs 0 MiB for weights"):
        ManyModels([SMALL, make_limits(pages=50)], [SIZE, SIZE], 150)
    with pytest.raises(DoesNotFit, match="a needs"):
        two(budget=179, pinned="b")
    two(budget=180, pinned="b")


def test_more_urgent_requests_have_their_model_loaded_first() -> None:
    world = two(policy="priority")
    world.submit("a", nice=0)
    world.submit("b", nice=-5)
    run(world)
    assert changes(world) == "bBa"


# ---- any order of events


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Limits], list[ModelSize], int]:
    limits, sizes = list[Limits](), list[ModelSize]()
    for _ in range(draw(st.integers(2, 3))):
        slots, page_tokens = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        columns = draw(st.integers(2, 6))
        pages = columns + draw(st.integers(0, 8))
        budget, swap = slots + draw(st.sampled_from([0, 3, 9])), draw(st.sampled_from([0, 3, 20]))
        limits.append(Limits(slots, budget, 12, columns * page_tokens, page_tokens, pages, swap))
        weights = draw(st.integers(1, 60))
        sizes.append(
            ModelSize(weights, draw(st.integers(0, 9)), draw(st.integers(1, 5)), draw(st.integers(1, columns)))
        )
    largest = max(size.bytes(one.pages) for one, size in zip(limits, sizes, strict=True))
    return limits, sizes, largest + draw(st.integers(0, 120))


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(
        models=models(),
        policy=st.sampled_from(sorted(POLICIES)),
        keep_alive=st.sampled_from([None, 20, 100]),
        prefixes=st.booleans(),
        pinned=st.sampled_from(["", "b", "ab"]),
        eviction=st.sampled_from(["auto", "swap"]),
        disk=st.fixed_dictionaries(
            {"seed": st.integers(0, 9), "delay": st.integers(0, 5), "fault": st.sampled_from([0.0, 0.2])}
        ),
    )
    def boot(
        self,
        models: tuple[list[Limits], list[ModelSize], int],
        policy: str,
        keep_alive: int,
        prefixes: bool,
        pinned: str,
        eviction: EvictionMode,
        disk: dict[str, Any],
    ) -> None:
        *sizes, budget = models
        budget += sum(size.bytes(size.least) for size, name in zip(sizes[1], "abc", strict=False) if name in pinned)
        self.world = ManyModels(
            *sizes,
            budget,
            policy=policy,
            keep_alive=keep_alive,
            prefixes=prefixes,
            pinned=pinned,
            eviction=eviction,
            disk=disk,
        )
        self.names = sorted(self.world.executors)

    @rule(
        model=st.integers(0, 2),
        prompt=st.integers(1, 9),
        max_tokens=st.sampled_from([1, 4, 9, 20, None]),
        n=st.sampled_from([1, 1, 2, 3]),
        nice=st.integers(-2, 2),
    )
    def submit(self, model: int, prompt: int, max_tokens: int | None, n: int, nice: int) -> None:
        name = self.names[model % len(self.names)]
        n = min(n, self.world.kernels.kernel(name).limits.slots)
        with contextlib.suppress(ContextTooLong, QueueFull):
            self.world.submit(name, prompt, max_tokens, n, nice)

    @rule(place=st.integers(0, 20), what=st.sampled_from(["cancel", "suspend", "resume"]))
    def command(self, place: int, what: str) -> None:
        if live := self.world.live:
            getattr(self.world, what)(live[place % len(live)])

    @rule(place=st.integers(0, 20), nice=st.integers(-3, 3))
    def renice(self, place: int, nice: int) -> None:
        if live := self.world.live:
            self.world.renice(live[place % len(live)], nice)

    @rule(model=st.integers(0, 2), unload=st.booleans())
    def load(self, model: int, unload: bool) -> None:
        name, kernels = self.names[model % len(self.names)], self.world.kernels
        with contextlib.suppress(InvalidRequest):
            kernels.unload(name) if unload else kernels.load(name, self.world.now)

    @rule(steps=st.integers(1, 12), took=st.integers(0, 20))
    def step(self, steps: int, took: int) -> None:
        for _ in range(steps):
            self.world.step(took)

    @rule(by=st.integers(1, 200))
    def wait(self, by: int) -> None:
        self.world.now += by

    @rule(ahead=st.integers(0, 3), model=st.integers(0, 2))
    def break_a_step(self, ahead: int, model: int) -> None:
        executor = self.world.executors[self.names[model % len(self.names)]]
        executor.breaks.add(self.world.steps + ahead)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            event(f"loads: {min(self.world.loads, 6)}")
            event(f"pages moved: {min(self.world.moved, 6)}")


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("seed", range(4))
def test_alternating_models_under_a_budget_that_holds_one_and_a_half(seed: int) -> None:
    random = Random(seed)
    limits = [make_limits(page_tokens=size, context=48, pages=60 // size, slots=3) for size in (3, 4)]
    sizes = [ModelSize(100, 10, 3, 48 // one.page_tokens) for one in limits]
    world = ManyModels(limits, sizes, int(1.5 * sizes[0].bytes(limits[0].pages)), prefixes=bool(seed % 2))
    for number in range(60):
        with contextlib.suppress(QueueFull):
            world.submit("ab"[number % 2], random.randint(1, 20), random.randint(1, 25))
        for _ in range(random.randint(0, 6)):
            world.step(random.randint(1, 6))
    world.drain()
    assert world.loads > 4
