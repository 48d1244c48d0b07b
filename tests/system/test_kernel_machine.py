"""Random commands and steps in tiny pools under all policies: after each, every invariant and promise holds."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from llmosd.errors import ContextTooLong, QueueFull
from llmosd.system.costs import ConstantPrefillCost, Costs, StepWork
from llmosd.system.kernel import Limits
from llmosd.system.policy import POLICIES
from llmosd.types import EvictionMode, Quota, Quotas
from tests.system.clairvoyant import Clairvoyant
from tests.system.symbolic import POISON
from tests.system.world import World


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """A pool of some twenty tokens for several requests of about as many each; once in a while next to nothing."""
    if draw(st.integers(0, 9)) == 9:
        return Limits(1, draw(st.integers(1, 3)), 2, draw(st.integers(2, 9)), draw(st.integers(1, 3)), 3)
    slots, page_tokens = draw(st.integers(3, 6)), draw(st.integers(1, 4))
    return Limits(
        slots=slots,
        token_budget=slots + draw(st.sampled_from([0, 1, 5, 12])),
        queue_limit=12,
        context=draw(st.sampled_from([40, 24])),
        page_tokens=page_tokens,
        pages=draw(st.integers(14, 26)) // page_tokens,
        swap_slots=draw(st.sampled_from([0, 5, 99])),
    )


@st.composite
def swaps(draw: st.DrawFn) -> dict[str, Any]:
    """How the swap file behaves: a seed, how many steps a transfer takes at most, and how many fail."""
    return {
        "seed": draw(st.integers(0, 99)),
        "delay": draw(st.sampled_from([0, 1, 4])),
        "fault": draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
    }


class AnyBudget:
    """Whatever is allowed, from the least on."""

    def prefill_tokens(self, work: StepWork, past: int, prompts: int, whole: int) -> int:
        assert work.decodes and prompts, "asked where nobody decodes, or nothing waits"
        return (7 * past + 3 * work.context + work.prefill) % 5 + (not work.prefill)


class AnyCost(ConstantPrefillCost):
    """Now this way is cheaper, now that."""

    def seconds(self, tokens: int, past: int) -> float:
        return (tokens * 7 + past) % 5 / 1e3


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a submission; most are small beside the pool and grow until they fill it."""
    return {
        "prompt": draw(st.sampled_from([2, 3, 4, 1, 6, 11, 20])),
        "max_tokens": draw(st.sampled_from([12, 10, 15, 1, 2, 30, None])),
        "n": draw(st.sampled_from([1, 1, 1, 2, 3])),
        "nice": draw(st.integers(-2, 2)),
        "user": draw(st.sampled_from("aab")),
        "batch": draw(st.sampled_from([False, False, True])),
        "ignore_eos": draw(st.sampled_from([True, True, False])),
    }


@st.composite
def quotas(draw: st.DrawFn) -> Quotas:
    """None, or one that the load of `a` is over most of the time."""
    if draw(st.booleans()):
        return Quotas()
    a = Quota(draw(st.integers(0, 2)), draw(st.sampled_from([0, 8, 5])), draw(st.sampled_from([1.0, 0.6])))
    return Quotas(Quota(draw(st.sampled_from([0, 1]))), {"a": a})


class KernelMachine(RuleBasedStateMachine):
    """No rule has a precondition (it then does nothing), so that hypothesis wastes no examples."""

    @initialize(
        limits=limits(),
        policy=st.sampled_from(sorted(POLICIES)),
        load=st.lists(shapes(), min_size=3, max_size=6),
        sight=st.one_of(st.none(), st.tuples(st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.9, 1.0]))),
        prefixes=st.booleans(),
        quotas=quotas(),
        eviction=st.sampled_from(["swap", "auto", "recompute"]),
        swap=swaps(),
    )
    def boot(
        self,
        limits: Limits,
        policy: str,
        load: list[dict[str, Any]],
        sight: tuple[int, float] | None,
        prefixes: bool,
        quotas: Quotas,
        eviction: EvictionMode,
        swap: dict[str, Any],
    ) -> None:
        self.world = World(
            limits,
            policy,
            Clairvoyant(*sight) if sight else None,
            prefixes=prefixes,
            quotas=quotas,
            eviction=eviction,
            costs=Costs(AnyCost(), budget=AnyBudget()),
        )
        self.world.disk(**swap)
        for shape in load:
            self.submit(shape, age=0)

    @rule(shape=shapes(), age=st.integers(0, 9), within=st.sampled_from([None, None, 1, 3000]))
    def submit(self, shape: dict[str, Any], age: int, within: int | None = None) -> None:
        shape["n"] = min(shape["n"], self.world.limits.slots)
        deadline = None if within is None else self.world.now + within
        try:
            self.world.submit(**shape, age=min(age, self.world.now), deadline=deadline)
        except ContextTooLong:
            event("refused: too long")
        except QueueFull:
            assert self.world.kernel.stats(False).waiting >= self.world.limits.queue_limit

    @rule(size=st.integers(1, 20), place=st.integers(0, 19), n=st.integers(1, 2))
    def submit_poison(self, size: int, place: int, n: int) -> None:
        prompt = [3] * size
        prompt[place % size] = POISON
        with contextlib.suppress(ContextTooLong, QueueFull):
            self.world.submit(prompt, 4, n=min(n, self.world.limits.slots))

    @rule(place=st.integers(0, 5))
    def cancel(self, place: int) -> None:
        if live := self.world.oracle.live:
            self.world.cancel(live[place % len(live)])

    @rule(place=st.integers(0, 5), nice=st.integers(-20, 19))
    def renice(self, place: int, nice: int) -> None:
        if live := self.world.oracle.live:
            self.world.renice(live[place % len(live)], nice)

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def set_policy(self, policy: str) -> None:
        self.world.set_policy(policy)

    @rule(place=st.integers(0, 5))
    def suspend(self, place: int) -> None:
        if live := self.world.oracle.live:
            self.world.suspend(live[place % len(live)])

    @rule(place=st.integers(0, 5))
    def resume(self, place: int) -> None:
        if live := self.world.oracle.live:
            self.world.resume(live[place % len(live)])

    @rule(place=st.integers(0, 5))
    def pause(self, place: int) -> None:
        if live := self.world.oracle.live:
            self.world.pause(live[place % len(live)])

    @rule(place=st.integers(0, 5))
    def unpause(self, place: int) -> None:
        if live := self.world.oracle.live:
            self.world.unpause(live[place % len(live)])

    @rule(down=st.integers(0, 1000), starts_at=st.integers(0, 50), resume=st.integers(0, 31))
    def restart(self, down: int, starts_at: int, resume: int) -> None:
        self.world.restart(down, starts_at)
        for place, id in enumerate(self.world.oracle.live):
            if resume >> place & 1:
                self.world.resume(id)

    @rule(steps=st.integers(1, 12), took=st.integers(0, 1000))
    def run(self, steps: int, took: int) -> None:
        for _ in range(steps):
            self.world.step(took)

    @rule(pages=st.integers(0, 26))
    def resize(self, pages: int) -> None:
        self.world.resize(min(pages, self.world.limits.pages))

    @rule(pages=st.integers(0, 26))
    def unload_and_load(self, pages: int) -> None:
        self.world.evacuate()
        self.world.resize(min(pages, self.world.limits.pages))

    @rule()
    def interrupt(self) -> None:
        self.world.executor.interrupted = True

    @rule(ahead=st.integers(0, 3))
    def break_a_step(self, ahead: int) -> None:
        self.world.executor.breaks.add(self.world.oracle.steps + ahead)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            stats = self.world.kernel.stats(False)
            event(f"preemptions: {min(self.world.preemptions, 5)}")
            event(f"quota in use: {self.world.parked > 0}")
            event(f"pages read back: {stats.swap_ins > 0}, failures: {stats.swap_failures > 0}")
            event(f"pages brought along: {self.world.planted > 0}")
            event(f"right guesses: {self.world.kernel.stats(False).accepted_tokens > 0}")


TestKernelMachine = KernelMachine.TestCase
TestKernelMachine.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(6))
def test_overload(policy: str, seed: int) -> None:
    """More is asked for than the pool holds all the time; what is preempted computes again and ends as if alone.

    Half the worlds guess, mostly right.
    """
    random = Random(seed)
    slots = random.randint(4, 8)
    page_tokens = random.randint(1, 3)
    limits = Limits(slots, slots + random.randint(0, 16), 12, 40, page_tokens, 48 // page_tokens)
    world = World(limits, policy, Clairvoyant(seed, 0.8) if seed % 2 else None)
    for _ in range(120):
        if random.random() < 0.5:
            prompt, max_tokens = random.randint(1, 8), random.randint(4, 30)
            with contextlib.suppress(ContextTooLong, QueueFull):
                world.submit(prompt, max_tokens, n=random.randint(1, 2), nice=random.randint(-3, 3))
        if random.random() < 0.05 and world.oracle.live:
            world.cancel(random.choice(world.oracle.live))
        if random.random() < 0.05 and world.oracle.live:
            world.renice(random.choice(world.oracle.live), random.randint(-20, 19))
        if random.random() < 0.05:
            world.executor.breaks.add(world.oracle.steps)
        world.step(random.randint(0, 1000))
    world.drain()
    assert world.preemptions > 2, "the load does not test what it is meant to"
    assert (world.kernel.stats(False).accepted_tokens > 20) == (seed % 2)
