"""What is seen of a pool. `World` compares every number with the pool's places, one by one, after each step."""

from __future__ import annotations

import pytest

from llmosd.system.memory import MAP_LIMIT, pool_map
from llmosd.types import PoolView
from tests.system.world import World, make_limits


def pool(world: World) -> PoolView:
    [found] = world.kernel.stats(True).pools
    return found


@pytest.mark.parametrize("page_tokens", [1, 4, 16])
def test_unfilled_places_are_those_after_the_last_token(page_tokens: int) -> None:
    world = World(make_limits(page_tokens=page_tokens, token_budget=100))
    for prompt in (3, 7, 16):
        world.submit(prompt, 20)
    lengths = [3, 7, 16]
    for _ in range(20):
        world.step()
        assert pool(world).unfilled == (sum(-length % page_tokens for length in lengths) if world.oracle.live else 0)
        lengths = [length + 1 for length in lengths]


def test_a_promise_is_seen_until_it_is_drawn() -> None:
    world = World(make_limits(token_budget=4, page_tokens=4))
    world.submit(16, 4)
    world.step()
    assert (pool(world).used, pool(world).reserved) == (1, 4), "the rest of the prompt, and the next token"
    world.drain()
    assert pool(world).reserved == 0


def test_what_begins_alike_in_different_pages_is_duplicate() -> None:
    """Both compute the same two tokens in one step, after a page that they share; then they differ."""
    world = World(make_limits(page_tokens=4, token_budget=100), prefixes=True)
    world.submit([1, 2, 3, 4, 5], 9)
    world.step()
    world.submit([1, 2, 3, 4, 7, 8, 9], 9)
    world.submit([1, 2, 3, 4, 7, 8, 11], 9)
    world.submit([1, 2, 3, 4, 7, 8, 9], 9, salt="of its own")
    world.step()
    world.step()
    assert pool(world).shared == 1
    assert pool(world).duplicate == 2
    world.drain()


def test_without_a_prefix_cache_nobody_looks_for_duplicates() -> None:
    assert pool(World()).duplicate is None


def test_a_map_has_a_letter_a_page_or_the_commonest_of_several() -> None:
    assert pool_map(b"us.c") == ("us.c", 1)
    assert pool_map(b"u" * MAP_LIMIT + b".") == ("u" * (MAP_LIMIT // 2) + ".", 2)
    codes, size = pool_map(b"u.." * MAP_LIMIT)
    assert (codes, size) == ("." * MAP_LIMIT, 3)
    assert pool_map(b".u" * MAP_LIMIT)[0] == "u" * MAP_LIMIT, "of two states as common, the one that says more"


def test_a_pool_that_has_become_smaller() -> None:
    world = World(make_limits(pages=8))
    world.submit(8, 4)
    world.step()
    world.kernel.resize(5)
    assert (pool(world).total, pool(world).used, pool(world).free) == (5, 2, 3)
    assert pool(world).map == "uu...---"
    world.drain()
