"""K and V of suspended requests in another kernel: found where they are, computed where they are not."""

from __future__ import annotations

import contextlib
from random import Random

import pytest

from llmosd.errors import ContextTooLong, QueueFull
from llmosd.system.costs import ConstantPrefillCost, ConstantTransferCost, Costs
from llmosd.system.kernel import Limits
from llmosd.system.pages import PagePool
from llmosd.system.policy import POLICIES
from llmosd.system.prefix_cache import PrefixCache
from llmosd.system.snapshot import KeptPages
from llmosd.system.transplant import Transplants
from tests.system.clairvoyant import Clairvoyant
from tests.system.world import World, make_limits

SLOW_PREFILL = Costs(ConstantPrefillCost(1.0))


def decoding(n: int = 1, *, prefixes: bool = True, pages: int = 64) -> World:
    """One request of 18 prompt tokens that has generated some, in pages of 4."""
    world = World(make_limits(pages=pages), prefixes=prefixes, costs=SLOW_PREFILL)
    world.submit(18, 20, n=n)
    for _ in range(8):
        world.step()
    world.suspend("r0")
    return world


def prefilled_by(world: World) -> int:
    """Tokens that are computed until the request, restored and resumed, gains its next one."""
    world.restart(down=5, starts_at=0)
    world.resume("r0")
    plan = world.step()
    assert plan is not None
    return plan.query_tokens


def test_what_is_in_full_pages_is_not_computed_again() -> None:
    assert prefilled_by(decoding()) <= 4
    assert prefilled_by(decoding(prefixes=False)) > 16 - 1


def test_branches_share_what_they_shared() -> None:
    world = decoding(n=2)
    kept, pages = world.kernel.kept("r0")
    assert kept.columns[0][:4] == kept.columns[1][:4] == (0, 1, 2, 3)
    assert kept.pages == len(set(pages)) < sum(map(len, kept.columns))
    world.drain()


def test_small_histories_are_computed_where_that_is_cheaper() -> None:
    world = decoding()
    request = world.kernel._find("r0")
    pool = world.kernel.pool
    for page_s, worth_it in ((1.99, True), (2.01, False)):  # a page has four tokens, and goes to disk and back
        costs = Costs(ConstantPrefillCost(1.0), ConstantTransferCost(page_s))
        assert bool(Transplants(pool, 4, costs, remember=True).held(request)[1]) is worth_it


def test_pages_of_another_size_and_a_cache_turned_off_take_nothing() -> None:
    world = decoding()
    kept, _ = world.kernel.kept("r0")
    assert world.kernel.plant("r0", KeptPages(8, kept.pages, kept.columns)) == []
    assert decoding(prefixes=False).kernel.plant("r0", kept) == []


@pytest.mark.parametrize("room", range(7))
def test_only_pages_that_hold_nothing_are_taken(room: int) -> None:
    world = decoding()
    kept, _ = world.kernel.kept("r0")
    assert kept.pages > 5
    pool = PagePool(room, PrefixCache(4, b""))
    planted = Transplants(pool, 4, Costs(), remember=True).plant(world.kernel._find("r0"), kept)
    assert [number for number, _ in planted] == list(range(min(room, kept.pages)))
    pool.check()
    assert (pool.used, pool.cache.idle) == (0, len(planted))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(6))
def test_restarts_in_the_middle_of_anything(policy: str, seed: int) -> None:
    """More is asked for than the pool holds; kernel after kernel takes over, and all end as if alone in one."""
    random = Random(seed)
    slots, page_tokens = random.randint(4, 8), random.randint(1, 4)
    budget, pages = slots + random.randint(0, 16), 64 // page_tokens
    limits = Limits(slots, budget, 12, 40, page_tokens, pages, swap_slots=seed % 2 * 9)
    speculation = Clairvoyant(seed, 0.8) if seed % 3 else None
    world = World(limits, policy, speculation, prefixes=seed > 0, costs=SLOW_PREFILL)
    restarts = 0
    for _ in range(150):
        if random.random() < 0.4:
            with contextlib.suppress(ContextTooLong, QueueFull):
                world.submit(random.randint(1, 14), random.randint(4, 25), n=random.randint(1, 2))
        if random.random() < 0.08 and world.oracle.live:
            world.restart(random.randint(0, 1000), random.randint(0, 1000))
            restarts += 1
            for id in world.oracle.live:
                if random.random() < 0.8:
                    world.resume(id)
        if random.random() < 0.05:
            world.executor.breaks.add(world.oracle.steps)
        world.step(random.randint(0, 1000))
    world.drain()
    assert restarts > 3 and (world.planted > 20) == (seed > 0), "the load does not test what it is meant to"
