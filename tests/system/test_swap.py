"""Requests swapped out and in, exactly and under random failures. Page size 4 unless said otherwise."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from llmosd.system.costs import ConstantPrefillCost, ConstantTransferCost, Costs
from llmosd.system.kernel import Limits
from llmosd.system.swap import SwapBudget, SwapSpace
from llmosd.types import Evicted, EvictionMode, Plan, Restored, State, SwapFailed
from tests.system.world import World, make_limits


def small(eviction: EvictionMode = "swap", *, swap_slots: int = 20, delay: int = 0, prefixes: bool = False) -> World:
    """Two requests of up to four pages in a pool of five."""
    world = World(make_limits(slots=2, pages=5, swap_slots=swap_slots), eviction=eviction, prefixes=prefixes)
    world.disk(delay=delay)
    for _ in range(2):
        world.submit(4, 12)
    return world


def until(world: World, id: str, state: State) -> Plan:
    while world.state(id) is not state:
        plan = world.step()
        assert plan is not None
    return plan


def test_slots_are_taken_once_and_given_back() -> None:
    space = SwapSpace(3)
    slots = [space.take(owner) for owner in ("a", "b", "a")]
    assert sorted(slots) == [0, 1, 2]
    assert (space.free, space.used, space.owner(slots[1])) == (0, 3, "b")
    space.give(slots[1])
    assert space.take("c") == slots[1]
    space.check()
    with pytest.raises(KeyError):
        SwapSpace(1).give(0)


def test_spaces_of_several_models_stay_within_one_limit() -> None:
    budget = SwapBudget(100)
    large, small = SwapSpace(10, 30, budget), SwapSpace(10, 10, budget)
    slots = [large.take("a") for _ in range(2)]
    assert (large.free, small.free) == (1, 4)
    for _ in range(4):
        small.take("b")
    assert (large.free, small.free) == (0, 0)
    large.give(slots[0])
    assert (large.free, small.free) == (1, 0), "a slot keeps its place on disk"
    assert large.take("c") == slots[0]
    for space in (large, small):
        space.check()


def test_a_victim_goes_out_and_comes_back_to_where_it_was() -> None:
    world = small()
    plan = until(world, "r1", State.SWAPPED)
    before = world.kernel.view("r1")
    assert (before.pages, before.swapped_pages, before.position, before.preemptions) == (0, 2, 1, 1)
    assert len(plan.page_outs) == 2
    plan = until(world, "r1", State.DECODE)
    assert world.kernel.view("r1").completion_tokens == before.completion_tokens
    assert world.kernel.view("r1").swapped_pages == 0
    computed = world.kernel.stats(False).prompt_tokens
    assert [(part.sequence, len(part.tokens)) for part in world.step().sequences][-1] == (1, 1)
    world.drain()
    stats = world.kernel.stats(False)
    assert stats.prompt_tokens == computed == 8, "nothing was computed twice"
    assert (stats.swapped, stats.swap_outs, stats.swap_ins, stats.swap_failures) == (1, 2, 2, 0)


def test_who_needs_the_pages_sits_out_until_they_are_written_and_takes_no_second_victim() -> None:
    world = World(make_limits(slots=3, pages=6, swap_slots=20), eviction="swap")
    for _ in range(3):
        world.submit(3, 12)
    world.disk(seed=1, delay=6)
    plan = until(world, "r2", State.SWAPPED)
    assert not plan.sequences, "both others need a page at the same time"
    while world.kernel.stats(False).pages_cached + world.kernel.stats(False).pages_used == 6:
        plan = world.step()
    assert (plan.sequences, world.preemptions) == ((), 1)
    assert [part.sequence for part in world.step().sequences] == [0, 1]
    world.drain()


def test_what_others_hold_as_well_is_expected_to_be_there_on_either_way_back() -> None:
    """12 tokens in three pages, of which another request holds the first two."""
    costs = Costs(ConstantPrefillCost(1.0), ConstantTransferCost(0.1))
    world = World(make_limits(swap_slots=20), eviction="swap", prefixes=True, costs=costs)
    for number in range(2):
        id = world.submit([1, 2, 3, 4, 5, 6, 7, 8, number, 9, 9, 9], 8)
    until(world, id, State.DECODE)
    world.suspend(id)
    evicted = world.oracle.lives[id].evicted
    assert (evicted.pages, evicted.tokens) == (3, 12)
    assert (evicted.recompute_s, evicted.swap_s) == (pytest.approx(4.0), pytest.approx(0.3 + 0.1))
    world.step()
    world.resume(id)
    world.drain()


@pytest.mark.parametrize("seed", range(12))
def test_nobody_below_takes_the_pages_that_a_request_waits_for(seed: int) -> None:
    random = Random(seed)
    world = World(make_limits(slots=6, page_tokens=1, pages=24, swap_slots=99), eviction="swap")
    world.disk(seed=seed, delay=6)
    for _ in range(4):
        world.submit(random.randint(1, 6), random.randint(4, 9), n=random.choice([1, 2]))
    while "r0" in world.oracle.live:
        before = world.kernel.views()
        plan = world.step()
        sits_out = not any(part.row >= 0 and part.sequence in (0, 1) for part in plan.sequences)
        if before[0].state is State.DECODE and sits_out and world.kernel.transferring:
            grown = {view.id: view.pages for view in world.kernel.views() if view.state is State.DECODE}
            assert all(grown.get(view.id, 0) <= view.pages for view in before if view.state is State.DECODE)
    world.drain()


def test_a_request_that_came_back_is_no_victim_before_it_has_gained_a_token() -> None:
    """It comes back slowly, and who runs meanwhile grows by more than the spare pages; the oracle looks at it."""
    world = World(make_limits(slots=6, page_tokens=1, pages=33, swap_slots=99), eviction="swap")
    world.disk(seed=1, delay=6)
    world.submit(4, 13, n=2)
    id = world.submit(3, 9)
    world.step()
    world.step()
    world.suspend(id)
    world.step()
    world.step()
    world.resume(id)
    world.drain()


def test_pages_come_in_beside_running_steps() -> None:
    world = World(make_limits(slots=3, pages=9, swap_slots=20), eviction="swap")
    world.submit(4, 20)
    held = world.submit(9, 4)
    world.step()
    world.step()
    world.suspend(held)
    world.step()
    world.resume(held)
    world.executor.swap.delay = 5
    overlapped = 0
    while world.state(held) is not State.DECODE:
        assert world.state(held) is State.SWAPPED
        plan = world.step()
        assert [part.sequence for part in plan.sequences] == [0]
        overlapped += world.kernel.view(held).pages == 3
    assert overlapped
    world.drain()


def test_a_suspended_request_goes_out_at_once_and_its_pages_stay_until_others_need_them() -> None:
    world = World(make_limits(swap_slots=20), eviction="swap", prefixes=True)
    id = world.submit(9, 8)
    world.step()
    world.suspend(id)
    assert not world.kernel.idle, "its pages are to be written out"
    plan = world.step()
    assert (len(plan.page_outs), plan.sequences) == (3, ())
    assert world.kernel.idle
    stats = world.kernel.stats(False)
    assert (stats.pages_used, stats.pages_cached, stats.swap_slots_used) == (0, 3, 3)
    world.resume(id)
    assert world.state(id) is State.SWAPPED
    plan = world.step()
    assert len(plan.page_ins) == 1, "full pages are found in the cache, and the last one is read"
    world.drain()


def test_without_room_in_the_swap_space_a_victim_computes_again() -> None:
    world = small(swap_slots=1)
    until(world, "r1", State.PREEMPTED)
    world.drain()
    assert world.kernel.stats(False).swap_outs == 0


@pytest.mark.parametrize(("page_s", "way"), [(1e-3, "swap"), (3e-3, "recompute")])
def test_the_cheaper_way_is_taken_and_what_both_cost_is_told(page_s: float, way: str) -> None:
    world = small("auto")
    costs = Costs(ConstantPrefillCost(1e-3), ConstantTransferCost(page_s))
    world = World(world.limits, costs=costs)
    told: list[Evicted | Restored] = []
    for _ in range(2):
        world.submit(4, 12)
    while not world.kernel.idle:
        world.step()
        told += [event for event in world.events if isinstance(event, Evicted | Restored)]
    evicted, restored = told
    assert isinstance(evicted, Evicted)
    assert isinstance(restored, Restored)
    assert (evicted.way, evicted.pages, evicted.tokens) == (way, 2, 8)
    assert evicted.recompute_s == pytest.approx(8e-3)
    assert evicted.swap_s == pytest.approx(4 * page_s)
    assert restored.expected_s == min(evicted.recompute_s, evicted.swap_s)
    assert restored.recomputed_tokens == (0 if way == "swap" else 8)
    assert restored.took_s > 0
    world.drain()


def test_the_victim_is_the_worst_in_nice_and_of_neighbours_in_rank_the_one_that_loses_least() -> None:
    for nice, victim in (([0, 0, 0], "r2"), ([0, 5, 0], "r1")):
        world = World(make_limits(slots=3, pages=8), "fcfs")
        for one in nice:
            world.submit(4, 12, nice=one)
        while not world.preemptions:
            world.step()
        assert [id for id in ("r0", "r1", "r2") if world.kernel.view(id).preemptions] == [victim]
        world.drain()
    world = World(make_limits(slots=3, pages=6))
    for prompt in (1, 2, 6):
        world.submit(prompt, 12)
    held = dict[str, tuple[int, int]]()
    while not world.preemptions:
        held = {view.id: (view.cached_tokens + view.completion_tokens - 1, view.pages) for view in world.kernel.views()}
        world.step()
    assert (held["r1"], held["r2"]) == ((5, 2), (9, 3))
    assert world.kernel.view("r1").preemptions == 1, "2.5 tokens for a page, not 3"
    world.drain()


def test_a_way_that_seems_too_dear_is_tried_once_in_a_while() -> None:
    """Trials cost little beside what is recomputed."""
    limits = make_limits(slots=4, pages=10, swap_slots=99)
    world = World(limits, costs=Costs(ConstantPrefillCost(1e-3), ConstantTransferCost(6e-3)))
    told: list[Evicted] = []
    while len(told) < 200:
        while len(world.oracle.live) < 6:
            world.submit(4, 20)
        world.step()
        told += [event for event in world.events if isinstance(event, Evicted)]
    trials = sum(event.swap_s for event in told if event.way == "swap")
    assert 0 < trials < sum(event.recompute_s for event in told) / 19
    world.drain()


def test_a_fork_goes_out_and_in_as_a_whole_with_shared_pages_once() -> None:
    world = World(make_limits(slots=3, swap_slots=20), eviction="swap")
    id = world.submit(9, 6, n=3)
    for _ in range(4):
        world.step()
    before = world.kernel.view(id)
    assert before.pages == 2 + 3
    world.suspend(id)
    assert len(world.step().page_outs) == 5
    world.resume(id)
    assert len(world.step().page_ins) == 5
    after = world.kernel.view(id)
    assert (after.state, after.pages, after.completion_tokens) == (State.DECODE, 5, before.completion_tokens)
    assert world.kernel.stats(False).pages_shared == 2
    world.drain()
    assert world.kernel.stats(False).prompt_tokens == 8 + 3


@pytest.mark.parametrize("moment", ["asked", "going", "out", "coming"])
def test_who_is_cancelled_leaves_nothing_behind_whatever_is_on_its_way(moment: str) -> None:
    world = World(make_limits(swap_slots=20), eviction="swap")
    id = world.submit(9, 8)
    world.step()
    world.suspend(id)
    world.disk(delay=9)
    if moment != "asked":
        world.step()
    if moment in ("out", "coming"):
        while not world.kernel.idle:
            world.step()
    if moment == "coming":
        world.resume(id)
        world.step()
        assert world.kernel.view(id).pages == 3
    world.cancel(id)
    stats = world.kernel.stats(False)
    under_way = 3 - world.executor.swap.done % 3 if moment in ("going", "coming") else 0
    assert stats.pages_used >= under_way
    assert bool(stats.swap_slots_used) == bool(under_way), "a slot is free when no transfer uses it"
    world.drain()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("inward", [False, True])
@pytest.mark.parametrize("prefixes", [False, True])
def test_a_failed_transfer_costs_its_own_request_a_recomputation(n: int, inward: bool, prefixes: bool) -> None:
    world = World(make_limits(slots=4, swap_slots=20), eviction="swap", prefixes=prefixes)
    world.submit(5, 12)
    id = world.submit(9, 8, n=n)
    for _ in range(3):
        world.step()
    told: list[object] = []

    def step() -> None:
        world.step()
        told.extend(event for event in world.events if isinstance(event, SwapFailed | Restored) and event.id == id)

    world.suspend(id)
    world.executor.swap.fault = 0.0 if inward else 1.0
    step()
    world.executor.swap.fault = 1.0
    world.resume(id)
    assert world.state(id) is (State.SWAPPED if inward else State.PREEMPTED)
    while not world.kernel.idle:
        step()
    failed, restored = told
    assert isinstance(failed, SwapFailed)
    assert failed.inward is inward
    assert isinstance(restored, Restored)
    assert restored.error == failed.error
    assert (world.state(id), world.state("r0")) == (State.FINISHED, State.FINISHED)
    world.drain()


def test_the_pages_before_a_failed_one_are_kept() -> None:
    world = World(make_limits(swap_slots=20), eviction="swap")
    id = world.submit(14, 4)
    world.step()
    world.suspend(id)
    world.step()
    world.resume(id)
    plan = world.kernel.plan(world.now)
    result = world.executor.execute(plan)
    assert len(result.transfers) == 4
    bad = {done.transfer: done for done in result.transfers}[plan.page_ins[2]]
    world.executor.pages[bad.transfer.page] = [-2] * 4
    transfers = tuple(replace(done, error="flipped") if done is bad else done for done in result.transfers)
    world.executor.swap.failed += 1
    world.events = world.kernel.commit(plan, replace(result, transfers=transfers), world.now)
    world.oracle.follow(world.events)
    world.kernel.check()
    view = world.kernel.view(id)
    assert (view.state, view.pages, view.cached_tokens) == (State.PREFILL, 2, 8)
    assert [(part.past, len(part.tokens)) for part in world.step().sequences] == [(8, 7)]
    world.drain()


@pytest.mark.parametrize("eviction", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("delay", [0, 3])
def test_a_pool_with_a_quarter_of_what_is_asked(eviction: EvictionMode, prefixes: bool, delay: int) -> None:
    """64 requests end with the tokens they get alone, within the bound on steps."""
    random = Random(7)
    shapes = [(random.randint(1, 8), random.randint(20, 55)) for _ in range(64)]
    asked = sum(-(-(prompt + tokens) // 4) for prompt, tokens in shapes)
    limits = Limits(64, 128, 64, 64, 4, asked // 4, asked)
    costs = Costs(ConstantPrefillCost(1e-3), ConstantTransferCost(1.9e-3))  # a full page is worth it
    world = World(limits, prefixes=prefixes, eviction=eviction, costs=costs)
    world.disk(delay=delay)
    for prompt, tokens in shapes:
        world.submit([random.randrange(12) for _ in range(prompt)], tokens)
    ways = set[str]()
    while not world.kernel.idle:
        world.step()
        ways |= {event.way for event in world.events if isinstance(event, Evicted)}
    world.drain()
    assert world.preemptions > 10
    assert ways == ({"recompute", "swap"} if eviction == "auto" else {eviction})


@pytest.mark.parametrize("eviction", ["recompute", "swap"])
def test_a_pool_of_one_page(eviction: EvictionMode) -> None:
    world = World(Limits(1, 1, 9, 16, 16, 1, 2), eviction=eviction)
    world.disk(delay=2)
    ids = [world.submit(1 + place, 8) for place in range(5)]
    for id in ids * 3:
        world.step()
        if id in world.oracle.live:
            world.suspend(id)
            world.step()
            world.resume(id)
    world.drain()
    assert {world.state(id) for id in ids} == {State.FINISHED}


@pytest.mark.parametrize("prompt", [4, 8, 12])
@pytest.mark.parametrize("steps", range(1, 7))
@pytest.mark.parametrize("prefixes", [False, True])
def test_a_prompt_that_ends_at_a_page_border(prompt: int, steps: int, prefixes: bool) -> None:
    world = World(make_limits(token_budget=4, swap_slots=20), eviction="swap", prefixes=prefixes)
    id = world.submit(prompt, 6)
    for _ in range(steps):
        world.step()
    if id in world.oracle.live:
        world.suspend(id)
        world.step()
        world.resume(id)
    world.drain()
    assert world.kernel.stats(False).prompt_tokens == prompt


@pytest.mark.parametrize("fault", [0.0, 0.2])
def test_ten_thousand_suspensions_and_resumptions_in_random_order(fault: float) -> None:
    random = Random(3)
    world = World(make_limits(slots=6, pages=20, swap_slots=40), eviction="swap", prefixes=True)
    world.disk(seed=1, delay=2, fault=fault)
    for place in range(10_000):
        while len(world.oracle.live) < 8:
            world.submit(random.randint(1, 20), 24, n=random.choice([1, 1, 2]))
        id = random.choice(world.oracle.live)
        (world.resume if world.state(id) is State.SUSPENDED else world.suspend)(id)
        if place % 3 == 0:
            world.step()
    world.drain()
    stats = world.kernel.stats(False)
    assert stats.swap_ins > 1000
    assert stats.finished > 50


@pytest.mark.parametrize("seed", range(40))
def test_any_load_on_any_disk(seed: int) -> None:
    """Commands, failing steps and failing transfers at random; a third of the worlds chooses, a third always swaps."""
    random = Random(seed)
    slots, page_tokens = random.randint(1, 6), random.randint(1, 4)
    limits = Limits(slots, slots + random.choice([0, 1, 5, 16]), 12, 40, page_tokens, 40 // page_tokens, 99)
    costs = Costs(ConstantPrefillCost(1e-3), ConstantTransferCost(4e-4 * page_tokens))
    eviction: EvictionMode = ("auto", "swap", "recompute")[seed % 3]
    world = World(
        limits, random.choice(["fcfs", "priority"]), prefixes=bool(seed // 3 % 2), eviction=eviction, costs=costs
    )
    world.disk(seed=seed, delay=random.choice([0, 1, 4]), fault=random.choice([0.0, 0.05, 0.5, 1.0]))
    for _ in range(80):
        while len(world.oracle.live) < slots + 2:
            world.submit(
                random.randint(1, 6),
                random.randint(1, 5),
                n=random.randint(1, min(2, slots)),
                nice=random.randint(-3, 3),
            )
        live = world.oracle.live
        command = random.choice(["cancel", "renice", *["suspend"] * 4, *["resume"] * 4, *["nothing"] * 6])
        if command in ("cancel", "suspend", "resume"):
            getattr(world, command)(random.choice(live))
        elif command == "renice":
            world.renice(random.choice(live), random.randint(-20, 19))
        if random.random() < 0.05:
            world.executor.breaks.add(world.oracle.steps)
        for _ in range(random.randint(0, 3)):
            world.step(random.randint(0, 1000))
    world.drain()
    stats = world.kernel.stats(False)
    assert stats.swap_outs if eviction == "swap" else eviction == "auto" or not stats.swap_outs
