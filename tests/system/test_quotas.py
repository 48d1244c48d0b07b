"""Quotas: who is over quota waits and never fails, delays nobody else, and never holds more than its share."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from random import Random

import pytest

from llmosd.errors import ContextTooLong, QueueFull
from llmosd.system.accounts import KEPT_NAMES, Accounts, PageMeter
from llmosd.system.policy import POLICIES
from llmosd.system.policy.fcfs import Fcfs
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request
from llmosd.types import Quota, Quotas, RequestView, State, StateChanged
from tests.system.world import World, make_limits


def world(limit: Quota, **knobs: int) -> World:
    """User `a` has this quota, nobody else has one."""
    return World(make_limits(**knobs), quotas=Quotas(users={"a": limit}))


def view(of: World, id: str) -> RequestView:
    return of.kernel.view(id)


def test_running_requests_of_one_user() -> None:
    w = world(Quota(running=2), slots=8)
    ids = [w.submit(4, 6, user="a") for _ in range(5)]
    other = w.submit(4, 6)
    w.step()
    assert [w.state(id) for id in ids] == [State.DECODE] * 2 + [State.QUEUED] * 3
    assert w.state(other) is State.DECODE, "it is delayed by requests that wait for a quota"
    assert [view(w, id).waits_for for id in ids] == ["", "", *["quota: running 2 of 2"] * 3]
    assert [view(w, id).position for id in ids[2:]] == [1, 2, 3]
    stats = w.kernel.stats(False)
    assert (stats.running, stats.waiting, stats.parked) == (3, 3, 3)
    w.drain()


def test_pages_of_one_user() -> None:
    """Of its 7 pages two requests hold two each at first, with one spare for each; a third would need two more."""
    w = world(Quota(pages=7), slots=8, token_budget=64)
    ids = [w.submit(7, 9, user="a") for _ in range(3)]
    w.step()
    assert [w.state(id) for id in ids] == [State.DECODE, State.DECODE, State.QUEUED]
    assert view(w, ids[2]).waits_for == "quota: pages 4 of 7, 2 more needed"
    w.drain()


def test_a_share_of_the_pool_is_a_number_of_pages() -> None:
    w = world(Quota(share=0.25), pages=64)
    assert w.kernel._accounts.most_pages("a") == 16
    w = world(Quota(share=0.25, pages=9), pages=64)
    assert w.kernel._accounts.most_pages("a") == 9
    assert w.kernel._accounts.most_pages("b") == 64


def test_growth_beyond_the_quota_takes_pages_of_the_same_user_only() -> None:
    w = world(Quota(pages=6), slots=8)
    first, second = (w.submit(4, 17, user="a") for _ in range(2))
    other = w.submit(4, 17)
    while w.state(second) is not State.PREEMPTED:
        w.step()
        assert w.state(other) is not State.PREEMPTED
    assert w.state(first) is State.DECODE
    w.drain()
    assert [w.oracle.lives[id].preemptions for id in (first, other)] == [0, 0]


@pytest.mark.parametrize("start", range(8, 17))
def test_nobody_else_gives_pages_to_who_is_over_quota(start: int) -> None:
    """The pool is as large as the quota and all that `b` needs, so it is never short of pages for either.

    `first` is over quota and cannot take from the other of its user, which is on the way to its next token, while `b`
    holds the rest.
    """
    limits = make_limits(slots=3, token_budget=3, page_tokens=4, pages=12)
    w = World(limits, "priority", quotas=Quotas(users={"a": Quota(pages=6)}))
    b = w.submit(3, 21, nice=5, user="b")
    while view(w, b).completion_tokens < start:
        w.step()
    first = w.submit(2, 18, user="a")
    w.step()
    w.submit(12, 4, user="a")
    sat_out = 0
    while w.oracle.live:
        before = view(w, first).completion_tokens if w.state(first) is State.DECODE else None
        w.step()
        sat_out += w.state(first) is State.DECODE and before == view(w, first).completion_tokens
    assert sat_out, "the quota was never short"
    assert w.oracle.lives[b].preemptions == 0


def test_what_alone_exceeds_the_quota_is_refused_with_what_there_is() -> None:
    w = world(Quota(pages=4))
    with pytest.raises(ContextTooLong, match=r"the quota of user 'a' is 4 pages, 16 tokens"):
        w.submit(10, 7, user="a")
    w.submit(10, 6, user="a")
    id = w.submit(10, None, user="a")
    assert view(w, id).max_tokens == 6, "without max_tokens it is all that fits the quota"
    w.submit(10, 7, user="b")
    w.drain()


def test_small_requests_do_not_overtake_a_large_one_of_their_user() -> None:
    w = world(Quota(pages=8), slots=8, token_budget=64)
    w.submit(16, 4, user="a")
    large = w.submit(24, 4, user="a")
    small = [w.submit(1, 1, user="a") for _ in range(3)]
    w.step()
    assert view(w, large).waits_for.startswith("quota: pages")
    assert view(w, small[0]).waits_for == "quota: others of this user go first"
    while w.oracle.live:
        w.step()
        if w.state(large) is State.QUEUED:
            assert all(w.state(id) is State.QUEUED for id in small)


def test_a_nicer_request_takes_the_place_of_a_parked_one() -> None:
    w = World(make_limits(slots=8), "priority", quotas=Quotas(users={"a": Quota(running=1)}))
    first, second, third = (w.submit(4, 6, user="a") for _ in range(3))
    w.step()
    w.renice(third, -5)
    assert [view(w, id).position for id in (second, third)] == [2, 1]
    while w.state(first) is not State.FINISHED:
        w.step()
    w.step()
    assert (w.state(second), w.state(third)) == (State.QUEUED, State.DECODE)
    w.drain()


@pytest.mark.parametrize("leave", ["cancel", "suspend"])
def test_who_waits_behind_a_parked_request_goes_on_when_it_leaves(leave: str) -> None:
    w = world(Quota(pages=8), slots=8, token_budget=64)
    w.submit(16, 4, user="a")
    large = w.submit(24, 4, user="a")
    small = w.submit(1, 4, user="a")
    w.step()
    getattr(w, leave)(large)
    w.step()
    assert w.state(small) is State.DECODE
    w.drain()


def test_suspending_makes_room_in_the_quota() -> None:
    w = world(Quota(running=1), slots=8)
    first, second = w.submit(4, 6, user="a"), w.submit(4, 6, user="a")
    w.step()
    w.suspend(first)
    w.step()
    assert w.state(second) is State.DECODE
    w.resume(first)
    w.step()
    assert view(w, first).waits_for == "quota: running 1 of 1"
    w.drain()


def test_the_queue_of_others_is_not_filled_by_the_parked() -> None:
    w = world(Quota(running=1), slots=2, queue_limit=3)
    for _ in range(5):
        w.submit(4, 6, user="a")
    with pytest.raises(QueueFull):
        w.submit(4, 6, user="a")
    w.step()
    with pytest.raises(QueueFull):
        w.submit(4, 6, user="a")
    for _ in range(4):
        w.submit(4, 6, user="b")
    w.drain()


def test_parked_requests_delay_nobody() -> None:
    """The steps of `b` are the same whether or not twenty more requests of `a` wait for its quota."""
    runs = []
    for extra in (0, 20):
        w = world(Quota(running=2), slots=4, pages=40)
        for _ in range(2 + extra):
            w.submit(4, 40, user="a")
        for number in range(30):
            if number % 5 == 0:
                w.submit([3, 1, 4, 1, 5, number], 4, user="b")
            w.step()
        runs.append([w.oracle.lives[id] for id in w.oracle.lives if w.oracle.lives[id].spec.user == "b"])
    for alone, beside in zip(*runs, strict=True):
        assert (alone.submitted, alone.spent, alone.tokens) == (beside.submitted, beside.spent, beside.tokens)


def test_no_step_looks_at_the_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are asked as often with ten parked requests as with a thousand, while the user's quota stands still."""
    asked, calls, rank = [], 0, Fcfs.rank

    def count(policy: Fcfs, request: Request) -> Rank:
        nonlocal calls
        calls += 1
        return rank(policy, request)

    monkeypatch.setattr(Fcfs, "rank", count)
    for parked in (10, 1000):
        w = World(make_limits(slots=4, queue_limit=2000, context=200), quotas=Quotas(users={"a": Quota(running=1)}))
        for _ in range(1 + parked):
            w.submit(2, 100, user="a")
        kernel = w.kernel
        kernel.commit(plan := kernel.plan(0), w.executor.execute(plan), 0)
        assert kernel.stats(False).parked == parked
        calls = 0
        for _ in range(20):
            kernel.commit(plan := kernel.plan(0), w.executor.execute(plan), 0)
        asked.append(calls)
    assert asked[0] == asked[1]


def test_pages_over_time_are_exact() -> None:
    meter, changes = PageMeter(), [(0, 3), (10**18, 2), (10**18 + 7, -4), (10**18 + 7, 1)]
    for now, pages in changes:
        meter.change(pages, now)
    by_hand = sum(
        held * (end - start) for (start, _), (end, _), held in zip(changes, changes[1:], [3, 5, 1], strict=False)
    )
    assert meter.total(10**18 + 7) == by_hand
    assert [b - a for a, b in pairwise(meter.total(10**18 + at) for at in (7, 8, 10))] == [2, 4]


def test_totals_of_users_are_kept_and_bounded() -> None:
    accounts = Accounts(Quotas(users={"named": Quota(running=1)}), 10)
    for number in range(3 * KEPT_NAMES):
        account = accounts.open(f"u{number}")
        meter = PageMeter()
        accounts.hold(account, meter, 2)
        accounts.now += 5
        accounts.hold(account, meter, 0)
        accounts.close(account)
    usages = accounts.usage()
    assert len(usages) == KEPT_NAMES + 1
    assert (usages[0].user, usages[-1].user) == ("u0", None)
    assert usages[-1].page_ns == 2 * KEPT_NAMES * 10
    assert sum(usage.page_ns for usage in usages) == 3 * KEPT_NAMES * 10
    accounts.check()


def test_a_sibling_that_ends_in_prefill_leaves_enough_promised() -> None:
    """The last of those that share a page does not copy it."""
    w = World(make_limits(slots=4, token_budget=4, queue_limit=12, context=40, page_tokens=2, pages=9))
    w.submit(2, 12)
    w.submit(2, None, n=3)
    w.submit(2, 12)
    w.drain()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(4))
def test_overload(policy: str, seed: int) -> None:
    """More is asked for than quotas and pool hold, all the time; `World` checks quotas, order and text at each step."""
    random = Random(seed)
    quotas = Quotas(Quota(running=3), {"a": Quota(pages=10), "b": Quota(running=1, share=0.4), "c": Quota()})
    limits = make_limits(slots=6, token_budget=14, queue_limit=30, pages=24, swap_slots=30 if seed > 1 else 0)
    world = World(limits, policy, prefixes=seed % 2 == 1, quotas=quotas)
    taken = 0
    for _ in range(300):
        if random.random() < 0.4:
            with suppress(ContextTooLong, QueueFull):
                user, n = random.choice("aaabcd"), random.randint(1, 2)
                world.submit(random.randint(1, 8), random.randint(4, 30), n=n, user=user, nice=random.randint(-3, 3))
        if random.random() < 0.1 and (live := world.oracle.live):
            {0: world.cancel, 1: world.suspend, 2: world.resume}[random.randrange(3)](random.choice(live))
        if world.step(random.randint(0, 1000)):
            moves = [event for event in world.events if isinstance(event, StateChanged)]
            taken += sum(move.is_preemption and move.reason == "quota" for move in moves)
    world.drain()
    assert world.parked > 300 and taken > 1, "the load does not test what it is meant to"
