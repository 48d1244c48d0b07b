from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.errors import ConfigError, ContextTooLong, InvalidRequest, NotFound, QueueFull, RateLimited
from llmosd.system.kernel import Limits
from llmosd.types import Plan, Quota, Quotas, RequestSpec, Sampling, SequenceResult, StepResult
from tests.system.world import World, make_limits

S = 10**9


def spec(prompt: int = 3, *, id: str = "x", nice: int = 0, arrived: int = 0, **sampling: int | None) -> RequestSpec:
    return RequestSpec(id, "m", [1] * prompt, Sampling(**sampling), nice=nice, arrived=arrived)


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (spec(0), "prompt"),
        (spec(n=0), "n"),
        (spec(n=5), "n"),
        (spec(max_tokens=0), "max_tokens"),
        (spec(max_tokens=-1), "max_tokens"),
        (spec(nice=20), "priority"),
        (spec(nice=-21), "priority"),
        (spec(arrived=1), "arrived"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(bad: RequestSpec, param: str) -> None:
    world = World(make_limits(slots=4))
    with pytest.raises(InvalidRequest) as refused:
        world.kernel.submit(bad, 0)
    assert refused.value.param == param
    assert world.kernel.idle
    assert world.kernel.stats(False).accepted == 0


def test_an_id_is_unique_among_the_living_only() -> None:
    world = World()
    world.kernel.submit(spec(), 0)
    with pytest.raises(InvalidRequest, match="exists already"):
        world.kernel.submit(spec(), 0)
    world.kernel.cancel("x", "", 0)
    world.kernel.submit(spec(), 0)
    world.kernel.check()


def test_too_long_for_the_context_names_both_sizes() -> None:
    world = World(make_limits(context=20, pages=64))
    world.submit(12, 8)
    with pytest.raises(ContextTooLong, match=r"13 tokens and 8 .* context holds 20"):
        world.submit(13, 8)
    with pytest.raises(ContextTooLong, match=r"20 tokens and at least 1 .* context holds 20"):
        world.submit(20, None)


def test_too_long_for_the_pool_names_both_sizes() -> None:
    world = World(make_limits(context=64, page_tokens=4, pages=8))
    world.submit(20, 12)
    with pytest.raises(ContextTooLong, match=r"20 tokens and 13 .* n=1, .* pool holds 32"):
        world.submit(20, 13)
    world.submit(18, 6, n=2)  # four shared pages and two for each
    with pytest.raises(ContextTooLong, match=r"18 tokens and 7 .* n=2, .* pool holds 32"):
        world.submit(18, 7, n=2)


def test_max_tokens_not_given_is_all_that_fits() -> None:
    world = World(make_limits(context=40, page_tokens=4, pages=8))
    assert world.kernel.view(world.submit(20, None)).max_tokens == 12
    assert world.kernel.view(world.submit(18, None, n=2)).max_tokens == 6
    world = World(make_limits(context=30, page_tokens=4, pages=8))
    assert world.kernel.view(world.submit(20, None)).max_tokens == 10
    world.drain()


@given(
    prompt=st.integers(1, 30),
    n=st.integers(1, 4),
    page_tokens=st.integers(1, 7),
    pages=st.integers(1, 30),
    context=st.integers(2, 60),
)
@settings(max_examples=60, deadline=None)
def test_what_is_accepted_fits_alone_and_one_token_more_is_refused(
    prompt: int, n: int, page_tokens: int, pages: int, context: int
) -> None:
    """The closed form against a count of pages; then the largest that is accepted runs to its end in that pool."""
    world = World(make_limits(context=context, page_tokens=page_tokens, pages=pages))

    def fits(max_tokens: int) -> bool:
        shared = (prompt - 1) // page_tokens
        needed = shared + n * (-(-(prompt + max_tokens) // page_tokens) - shared)
        return needed <= pages and prompt + max_tokens <= context

    largest = max((m for m in range(1, 61) if fits(m)), default=None)
    if largest is None:
        with pytest.raises(ContextTooLong):
            world.submit(prompt, 1, n=n)
        with pytest.raises(ContextTooLong):
            world.submit(prompt, None, n=n)
        return
    with pytest.raises(ContextTooLong):
        world.submit(prompt, largest + 1, n=n)
    assert world.kernel.view(world.submit(prompt, None, n=n)).max_tokens == largest
    world.drain()
    assert world.preemptions == 0


def test_the_queue_is_bounded_and_what_runs_does_not_count() -> None:
    world = World(make_limits(slots=1, queue_limit=2))
    world.submit(3)
    world.step()
    world.submit(3)
    world.submit(3)
    with pytest.raises(QueueFull, match="2 requests"):
        world.submit(3)
    with pytest.raises(ContextTooLong):
        world.submit(999)  # a request that can never run is not told to come back
    world.drain()


def test_a_burst_into_free_slots_does_not_fill_the_queue() -> None:
    world = World(make_limits(slots=4, queue_limit=1))
    for _ in range(5):
        world.submit(3)
    with pytest.raises(QueueFull, match="5 requests"):
        world.submit(3)
    world.step()
    with pytest.raises(QueueFull, match="1 requests"):
        world.submit(3)
    world.drain()


def test_commands_on_unknown_and_ended_requests_are_not_found() -> None:
    kernel = World().kernel
    kernel.submit(spec(), 0)
    kernel.cancel("x", "", 0)
    for command in (
        lambda: kernel.cancel("x", "", 0),
        lambda: kernel.fail("x", "", 0),
        lambda: kernel.renice("x", 0, 0),
        lambda: kernel.view("x"),
    ):
        with pytest.raises(NotFound, match="no live request x"):
            command()


def test_nice_out_of_range_changes_nothing() -> None:
    world = World(policy="priority")
    id = world.submit(3, nice=5)
    with pytest.raises(InvalidRequest, match="-20 to 19"):
        world.kernel.renice(id, 20, 0)
    assert world.kernel.view(id).nice == 5


@pytest.mark.parametrize("name", ["slots", "token_budget", "queue_limit", "context", "page_tokens", "pages"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make_limits(**{name: 0})


def test_the_budget_covers_every_slot() -> None:
    with pytest.raises(ConfigError, match="token_budget"):
        Limits(slots=5, token_budget=4, queue_limit=1, context=8, page_tokens=4, pages=4)


def test_only_the_plan_in_flight_can_be_committed_and_only_with_its_own_results() -> None:
    world = World()
    id = world.submit(3)
    plan = world.kernel.plan(0)
    assert plan is not None
    result = world.executor.execute(plan)
    with pytest.raises(ValueError, match="not the step in flight"):
        world.kernel.commit(Plan(plan.step, plan.sequences), result, 0)
    for wrong in (StepResult(plan.step + 1, result.sequences), StepResult(plan.step, ())):
        with pytest.raises(ValueError, match="not that of step 0"):
            world.kernel.commit(plan, wrong, 0)
    with pytest.raises(ValueError, match="neither grew nor ended"):
        world.kernel.commit(plan, StepResult(plan.step, (SequenceResult(plan.sequences[0].sequence),)), 0)
    with pytest.raises(ValueError, match="while its step may be running"):
        world.kernel.cancel(id, "", 0)
    world.oracle.follow(world.kernel.commit(plan, result, 0))
    with pytest.raises(ValueError, match="not the step in flight"):
        world.kernel.commit(plan, result, 0)
    world.drain()


def test_time_does_not_run_backwards() -> None:
    kernel = World().kernel
    kernel.submit(spec(), 10)
    with pytest.raises(ValueError, match="9 after 10"):
        kernel.plan(9)


# ---------------------------------------------------------------- too many


def test_the_queue_is_bounded_by_tokens_and_one_may_always_wait() -> None:
    world = World(make_limits(slots=1, queue_tokens=20))
    world.submit(3, 4)
    world.step()
    world.submit(30, 30)  # alone in the queue, whatever its size
    with pytest.raises(QueueFull, match="60 tokens are waiting already, 2 more exceed 20"):
        world.submit(1, 1)
    world.drain()
    first = world.submit(3, 4)
    world.step()
    world.submit(3, 4)
    world.submit(3, 4, n=1)
    with pytest.raises(QueueFull, match="14 tokens"):
        world.submit(3, 4)
    world.submit(3, 3)
    world.cancel(first)
    world.drain()


@pytest.mark.parametrize("seed", range(3))
def test_the_backlog_is_what_a_look_at_the_queue_says(seed: int) -> None:
    random = Random(seed)
    quotas = Quotas(users={"a": Quota(running=1), "b": Quota(pages=9)})
    world = World(make_limits(slots=3, pages=24, queue_limit=40), "priority", quotas=quotas)
    for _ in range(200):
        if random.random() < 0.5:
            with suppress(ContextTooLong, QueueFull):
                world.submit(random.randint(1, 9), random.randint(2, 12), user=random.choice("abc"))
        if random.random() < 0.2 and (live := world.oracle.live):
            random.choice((world.suspend, world.resume, world.cancel))(random.choice(live))
        world.step(random.randint(0, 9))
        queue = world.kernel.policy
        for user in "abcd":
            waits = [
                request
                for request in world.kernel._requests.values()
                if request.waiting and (request not in queue._parked or request.spec.user == user)
            ]
            assert queue.backlog(user) == (len(waits), sum(request.size for request in waits))
    world.drain()


def test_a_user_may_have_so_many_live_requests() -> None:
    world = World(quotas=Quotas(users={"a": Quota(live=2)}))
    first, second = (world.submit(3, user="a") for _ in range(2))
    world.suspend(second)
    with pytest.raises(RateLimited, match=r"user 'a' has 2 requests already, and may have 2"):
        world.submit(3, user="a")
    world.submit(3, user="b")
    world.cancel(first)
    world.submit(3, user="a")
    world.drain()


def test_a_token_rate_is_charged_for_what_may_be_generated_and_gives_back_what_was_not() -> None:
    world = World(quotas=Quotas(users={"a": Quota(tokens_per_s=2, burst=20)}))
    id = world.submit(4, 10, user="a")
    with pytest.raises(RateLimited) as refused:
        world.submit(4, 4, user="a")
    assert (refused.value.retry_after_s, refused.value.tokens) == (1.0, (20, 6, 7.0))
    world.submit(4, 4, user="b")
    while world.kernel.view(id).completion_tokens < 3:
        world.step()
    world.cancel(id)  # 7 were not generated: 13 are left
    world.submit(4, 9, user="a")
    with pytest.raises(RateLimited):
        world.submit(1, 1, user="a")
    world.wait(S)
    world.submit(1, 1, user="a")
    world.drain()


def test_who_is_refused_for_another_reason_pays_nothing() -> None:
    world = World(make_limits(slots=1, queue_limit=1), quotas=Quotas(Quota(tokens_per_s=1, burst=40)))
    _, second = (world.submit(3, 7) for _ in range(2))
    for _ in range(3):
        with pytest.raises(QueueFull, match="2 requests"):
            world.submit(3, 7)
    world.step()
    world.cancel(second)
    world.submit(3, 40 - 20 + 7 - 3)
    world.drain()


def test_when_to_come_back_follows_the_measured_rate() -> None:
    world = World(make_limits(slots=1, queue_limit=3), quotas=Quotas(users={"a": Quota(live=1)}))
    ids = [world.submit(2, 3) for _ in range(3)]
    world.submit(2, 3, user="a")
    while world.oracle.lives[ids[0]].final is None:
        world.step(S)
    world.submit(2, 3)
    world.wait(10 * S - world.now)
    with pytest.raises(QueueFull) as refused:
        world.submit(2, 3)
    assert type(refused.value) is QueueFull
    waiting = world.kernel.stats(False).waiting
    assert refused.value.retry_after_s == pytest.approx(waiting / 0.1), "one has finished in 10 s"
    world.cancel(ids[2])
    with pytest.raises(RateLimited) as refused:
        world.submit(2, 3, user="a")
    assert refused.value.retry_after_s == pytest.approx(3 / 0.1), "it is one of three: every third end is its user's"
    world.drain()
