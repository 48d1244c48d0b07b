"""What has been computed is not computed again. Page size 4 throughout, a quarter of it is worth copying."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.errors import ContextTooLong
from llmosd.system.prefix_cache import PrefixCache, common_tokens
from llmosd.types import Plan, State
from tests.system.symbolic import expected_tokens
from tests.system.world import World, make_limits


def tokens(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def fed(plan: Plan | None) -> list[tuple[int, int, int]]:
    """(sequence, past, tokens fed) of each part of a step."""
    assert plan is not None
    return [(part.sequence, part.past, len(part.tokens)) for part in plan.sequences]


def computed(world: World) -> int:
    return world.kernel.stats(False).prompt_tokens


# ---------------------------------------------------------------- the tree


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), max_size=9))
def test_common_tokens_is_the_length_of_the_longest_common_prefix(one: list[int], other: list[int]) -> None:
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_tokens(tokens(*one), tokens(*other)) == expected


def test_a_path_ends_where_the_tokens_differ() -> None:
    cache = PrefixCache(2, b"k")
    root = cache.root("")
    first = cache.insert(root, tokens(1, 2), 7)
    second = cache.insert(first, tokens(3, 4), 3)
    tail = cache.insert(second, tokens(5), 4)
    assert cache.walk(root, tokens(1, 2, 3, 4, 5, 6)) == [first, second]
    assert cache.walk(root, tokens(1, 2, 3)) == [first]
    assert cache.walk(root, tokens(2, 2, 3, 4)) == []
    assert cache.closest(second, tokens(5, 6)) == (tail, 1)
    assert cache.closest(first, tokens(3, 9)) == (second, 1)
    assert cache.closest(first, tokens(9, 9)) == (None, 0)
    cache.check()


def test_salts_and_identities_do_not_meet() -> None:
    cache, other = PrefixCache(2, b"k"), PrefixCache(2, b"another")
    node = cache.insert(cache.root("a"), tokens(1, 2), 0)
    assert cache.walk(cache.root("a"), tokens(1, 2)) == [node]
    assert cache.walk(cache.root("b"), tokens(1, 2)) == []
    assert other.root("a").key != cache.root("a").key


def test_idle_pages_go_leaf_first_and_the_oldest_of_equals() -> None:
    cache = PrefixCache(1, b"k")
    a = cache.insert(cache.root(""), tokens(1), 0)
    cache.insert(a, tokens(2), 1)
    cache.insert(cache.root(""), tokens(9), 2)
    for page in (0, 1, 2):
        assert cache.retire(page)
    assert not cache.retire(5), "a page that is in no node"
    assert cache.idle == 3
    assert [cache.reclaim() for _ in range(3)] == [2, 1, 0]
    assert (cache.idle, cache.walk(cache.root(""), tokens(1))) == (0, [])
    cache.check()


def test_what_is_used_again_outlives_what_is_not() -> None:
    cache = PrefixCache(1, b"k")
    for page in range(3):
        cache.insert(cache.root(""), tokens(page), page)
        cache.retire(page)
    cache.revive(0)
    assert cache.reclaim() == 1
    cache.retire(0)
    assert [cache.reclaim(), cache.reclaim()] == [2, 0]


# ---------------------------------------------------------------- the kernel with it


def test_one_after_the_other_only_the_rest_is_computed() -> None:
    world = World(make_limits(token_budget=32), prefixes=True)
    prefix = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    for rest in ([1, 1], [2, 2, 2], [3]):
        world.submit(prefix + rest, 1)
        world.step()
    assert computed(world) == 12 + 3 + 1
    assert world.oracle.lives["r2"].final.reused_tokens == 10
    world.drain()


def test_all_at_once_the_others_wait_for_the_first_and_copy_what_a_page_has_in_common() -> None:
    world = World(make_limits(slots=4, token_budget=64), prefixes=True)
    prefix = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    for rest in range(4):
        world.submit([*prefix, rest + 1, rest + 1], 4)
    assert fed(world.step()) == [(0, 0, 12)]
    plan = world.step()
    assert fed(plan) == [(0, 12, 1), (1, 10, 2), (2, 10, 2), (3, 10, 2)]
    assert len(plan.copies) == 3
    assert computed(world) == 12 + 3 * 2
    world.drain()


def test_nobody_waits_for_one_who_stands_still() -> None:
    world = World(make_limits(token_budget=8), prefixes=True)
    for _ in range(2):
        world.submit([1] * 12, 1)
    assert fed(world.step()) == [(0, 0, 8)]
    assert fed(world.step()) == [(0, 8, 4)], "the second waits for the page that the first computes"
    world.drain()
    first, _ = world.submit([2] * 12, 1), world.submit([2] * 12, 1)
    assert fed(world.step()) == [(2, 0, 8)]
    world.suspend(first)
    assert fed(world.step()) == [(3, 8, 4)]
    world.drain()


def test_who_waits_in_the_queue_finds_what_is_there_when_admitted() -> None:
    """Asked in each step, while pages of its beginning come and go."""
    world = World(make_limits(slots=3, pages=12, token_budget=64, context=48), prefixes=True)
    beginning = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    world.submit(beginning, 1)
    world.drain()
    running = [world.submit([place] * 8, 14) for place in range(2)]
    world.step()
    waiting = world.submit([*beginning, *[7] * 16], 4)
    while world.state(waiting) is State.QUEUED:
        world.step()
    assert all(world.state(one) is State.FINISHED for one in running)
    world.drain()


def test_the_whole_prompt_is_known_and_its_last_token_is_computed_nevertheless() -> None:
    world = World(prefixes=True)
    for _ in range(2):
        world.submit([1, 2, 3, 4, 5, 6, 7, 8], 1)
        world.step()
    assert computed(world) == 8 + 1
    world.drain()


def test_a_conversation_goes_on_from_its_generated_tokens() -> None:
    world = World(make_limits(token_budget=32), prefixes=True)
    first = world.submit([1, 2, 3, 4, 5], 6)
    world.drain()
    life = world.oracle.lives[first]
    answer = life.tokens[0]
    world.submit([1, 2, 3, 4, 5, *answer, 7, 7], 1)
    world.step()
    assert computed(world) == 5 + 1 + 2, "the last generated token was never fed"
    world.drain()


def test_what_is_preempted_finds_its_pages_again() -> None:
    world = World(make_limits(slots=2, token_budget=8, pages=8), prefixes=True)
    for _ in range(2):
        world.submit(6, 20)
    while not world.preemptions:
        world.step()
    before = world.kernel.stats(False).reused_tokens
    world.drain()
    assert world.kernel.stats(False).reused_tokens > before


def test_requests_of_another_salt_share_nothing() -> None:
    world = World(prefixes=True)
    for salt in ("a", "b", "a"):
        world.submit([1, 2, 3, 4, 5], 1, salt=salt)
        world.step()
    assert computed(world) == 5 + 5 + 1
    world.drain()


def test_pages_computed_twice_are_kept_once() -> None:
    """Two that could not know of each other: the second's prompt is the first's prompt and generated tokens."""
    world = World(make_limits(slots=2, token_budget=32), prefixes=True)
    spec_tokens = [1, 2, 3]
    first = world.submit(spec_tokens, 9)
    expected = expected_tokens(world.oracle.lives[first].spec, 0, 9)
    world.submit([*spec_tokens, *expected], 12)
    while world.kernel.view(first).completion_tokens < 8:
        world.step()
    assert world.kernel.stats(False).pages_shared == 2, "the two full pages that the first has filled"
    world.drain()


def test_the_cache_is_never_in_the_way() -> None:
    """Full of idle pages, the pool serves what has nothing in common with them."""
    world = World(make_limits(slots=1, pages=8), prefixes=True)
    for number in range(6):
        world.submit([number + 1] * 9, 8)
        world.drain()
    stats = world.kernel.stats(False)
    assert stats.pages_used == 0
    assert 0 < stats.pages_cached <= 8


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("seed", range(8))
def test_under_pressure_with_common_prefixes(policy: str, seed: int) -> None:
    random = Random(seed)
    slots, page_tokens = random.randint(4, 8), random.randint(1, 4)
    limits = make_limits(
        slots=slots, token_budget=slots + random.randint(0, 16), context=40, page_tokens=page_tokens,
        pages=48 // page_tokens, queue_limit=200,
    )  # fmt: skip
    world = World(limits, policy, prefixes=True)
    prefixes = [[random.randint(1, 11) for _ in range(random.randint(1, 12))] for _ in range(3)]
    for _ in range(80):
        if random.random() < 0.5:
            prompt = random.choice(prefixes) + [random.randint(1, 11) for _ in range(random.randint(0, 6))]
            with suppress(ContextTooLong):
                world.submit(prompt, random.randint(1, 20), n=random.randint(1, 2), nice=random.randint(-3, 3))
        if random.random() < 0.05 and world.oracle.live:
            world.cancel(random.choice(world.oracle.live))
        if random.random() < 0.05:
            world.executor.breaks.add(world.oracle.steps)
        world.step(random.randint(0, 1000))
    world.drain()
    assert world.kernel.stats(False).reused_tokens > 50


def test_a_page_to_copy_from_is_not_the_one_that_is_copied_into() -> None:
    """All pages are idle, and the one with tokens in common would be the next to go."""
    world = World(make_limits(slots=2, pages=5), prefixes=True)
    for prompt in ([1, 2, 3, 4, 5, 6, 7], [9, 8] * 6):
        world.submit(prompt, 1)
        while world.oracle.live:
            world.step()
    assert world.kernel.stats(False).pages_cached == 5
    world.submit([1, 2, 3, 4, 5, 6, 9], 1)
    [copy] = world.step().copies
    assert copy.source != copy.target
    world.drain()
