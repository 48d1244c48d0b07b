"""Exact small schedules. Page size 4 throughout."""

from __future__ import annotations

import pytest

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.costs import Costs, StepWork
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy.fcfs import Fcfs
from llmosd.types import Ended, FinishReason, Output, Plan, RequestSpec, Sampling, State
from tests.system.symbolic import POISON, expected_tokens
from tests.system.world import World, make_limits


def fed(plan: Plan | None) -> list[tuple[int, int, int, bool]]:
    """(sequence, past, tokens fed, sampled) of each part of a step."""
    assert plan is not None
    return [(part.sequence, part.past, len(part.tokens), part.sample) for part in plan.sequences]


def test_an_idle_kernel_plans_nothing() -> None:
    world = World()
    assert world.kernel.idle
    assert world.kernel.plan(0) is None
    world.kernel.check()


def test_one_request_from_prompt_to_end() -> None:
    world = World(make_limits(token_budget=4))
    id = world.submit(6, 3)
    first = world.step(took=10)
    assert first is not None
    assert [(start.sequence, start.choice, start.sampling.max_tokens) for start in first.started] == [(0, 0, 3)]
    assert fed(first) == [(0, 0, 4, False)]
    assert world.kernel.view(id).cached_tokens == 4
    assert fed(world.step(took=10)) == [(0, 4, 2, True)]
    assert world.state(id) is State.DECODE
    assert world.kernel.view(id).first_token == 20
    assert fed(world.step(took=10)) == [(0, 6, 1, True)]
    assert fed(world.step(took=10)) == [(0, 7, 1, True)]
    final = world.oracle.lives[id].final
    assert final is not None
    assert (final.state, final.finish, final.completion_tokens) == (State.FINISHED, "length", 3)
    assert (final.times.queued, final.times.prefill, final.times.decode) == (0, 20, 20)
    world.drain()


def test_decodes_go_first_and_prefill_chunks_share_what_is_left() -> None:
    world = World(make_limits(slots=4, token_budget=8))
    for prompt in (3, 20, 5):
        world.submit(prompt, 9)
    assert fed(world.step()) == [(0, 0, 3, True), (1, 0, 5, False)]
    assert fed(world.step()) == [(0, 3, 1, True), (1, 5, 7, False)]
    assert fed(world.step()) == [(0, 4, 1, True), (1, 12, 7, False)]
    assert fed(world.step()) == [(0, 5, 1, True), (1, 19, 1, True), (2, 0, 5, True)]
    assert world.state("r2") is State.DECODE
    world.drain()


class Sparing:
    """Beside decodes prompts have so many tokens of a step together."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.asked: list[tuple[int, ...]] = []

    def prefill_tokens(self, work: StepWork, past: int, prompts: int, whole: int) -> int:
        self.asked.append((work.decodes, work.context, past, prompts, whole))
        return self.tokens - work.prefill


def test_beside_decodes_prompts_share_what_the_step_budget_allows() -> None:
    budget = Sparing(3)
    world = World(make_limits(slots=4, token_budget=8), costs=Costs(budget=budget))
    world.submit(12, 9)
    assert [fed(world.step()) for _ in range(2)] == [[(0, 0, 8, False)], [(0, 8, 4, True)]]
    world.step()
    assert budget.asked == [], "nobody decodes beside a prompt"
    for prompt in (4, 5):
        world.submit(prompt, 9)
    assert fed(world.step()) == [(0, 13, 1, True), (1, 0, 3, False)]
    assert fed(world.step()) == [(0, 14, 1, True), (1, 3, 1, True), (2, 0, 2, False)]
    assert budget.asked == [(1, 13, 0, 2, 4), (1, 14, 3, 2, 0), (2, 17, 0, 2, 5)]
    world.drain()


def test_a_request_is_queued_until_the_budget_reaches_it() -> None:
    world = World(make_limits(slots=4, token_budget=4))
    world.submit(8, 2)
    world.submit(2, 2)
    world.step()
    assert (world.state("r0"), world.state("r1")) == (State.PREFILL, State.QUEUED)
    world.drain()


def test_with_priority_a_late_important_request_takes_the_budget_from_a_running_prefill() -> None:
    world = World(make_limits(slots=4, token_budget=4), policy="priority")
    world.submit(20, 2)
    world.step()
    world.submit(4, 2, nice=-5)
    assert fed(world.step()) == [(1, 0, 4, True)]
    assert fed(world.step()) == [(1, 4, 1, True), (0, 4, 3, False)]
    world.drain()


def test_nothing_overtakes_the_head_that_waits_for_slots() -> None:
    world = World(make_limits(slots=3))
    world.submit(2, 4, n=2)
    world.step()
    world.submit(2, 2, n=2)
    world.submit(2, 2)  # a slot is free for it, but it is not its turn
    world.step()
    assert (world.state("r1"), world.state("r2")) == (State.QUEUED, State.QUEUED)
    assert [view.position for view in world.kernel.views()] == [None, 1, 2]
    world.drain()


def test_nothing_overtakes_the_head_that_waits_for_pages() -> None:
    world = World(make_limits(pages=10))
    world.submit(15, 9)
    world.step()
    world.submit(23, 2)  # needs 6 pages and one spare for r0, which holds 4
    world.submit(2, 2)
    world.step()
    assert (world.state("r1"), world.state("r2")) == (State.QUEUED, State.QUEUED)
    world.drain()


def test_an_admission_leaves_a_spare_page_to_each_sequence_that_runs() -> None:
    world = World(make_limits(pages=8))
    world.submit(7, 5)
    world.step()  # holds two pages
    world.submit(19, 1)  # five to its next token: one more would be left
    world.submit(3, 1)
    assert len(fed(world.step())) == 2
    assert (world.state("r1"), world.state("r2")) == (State.PREFILL, State.QUEUED)
    world.drain()
    assert world.preemptions == 0


@pytest.mark.parametrize(("pages", "admitted"), [(5, State.DECODE), (4, State.QUEUED)])
def test_an_admission_counts_the_page_of_the_next_token(pages: int, admitted: State) -> None:
    world = World(make_limits(pages=pages))
    world.submit(3, 1)
    world.submit(8, 2)  # two full pages, a third for the next token, and one to spare for r0
    world.step()
    assert world.state("r1") is admitted
    world.drain()


def test_an_overloaded_pool_does_not_thrash() -> None:
    """Without spare pages this load, twice what the pool holds, computes each prompt 2.3 times; with them 1.2 times."""
    clock = ManualClock()
    kernel = Kernel(Limits(slots=16, token_budget=128, queue_limit=60, context=512, page_tokens=64, pages=40), Fcfs())
    executor = CostModelExecutor(
        CostModel(8e6, 3.5e5, 4e5, 600), lambda start: 100 + 7 * len(start.prompt) % 150, clock
    )
    prompts = [40 + 11 * number % 60 for number in range(60)]
    for number, prompt in enumerate(prompts):
        kernel.submit(RequestSpec(f"r{number}", "m", [1] * prompt, Sampling(max_tokens=300)), clock.now)
    while plan := kernel.plan(clock.now):
        kernel.commit(plan, executor.execute(plan), clock.now)
    stats = kernel.stats(False)
    assert stats.finished == len(prompts)
    assert stats.preemptions > 0
    assert stats.prompt_tokens < 1.5 * sum(prompts)


def test_the_lowest_ranked_gives_up_its_pages_and_computes_them_again() -> None:
    world = World(make_limits(slots=2, pages=5))
    world.submit(4, 12)
    world.submit(4, 12)
    while not world.preemptions:
        plan = world.step()
    assert world.state("r1") is State.PREEMPTED
    assert [part.sequence for part in plan.sequences] == [0]
    view = world.kernel.view("r1")
    assert (view.pages, view.position, view.preemptions, view.cached_tokens) == (0, 1, 1, 0)
    generated = view.completion_tokens
    assert generated > 1
    while world.state("r1") is State.PREEMPTED:
        plan = world.step()
    again = plan.sequences[-1]
    assert (again.sequence, again.past, len(again.tokens), again.sample) == (1, 0, 4 + generated, True)
    assert plan.started == (), "the executor still knows it"
    world.drain()


def test_with_priority_the_victim_is_the_least_important() -> None:
    world = World(make_limits(slots=2, pages=5), policy="priority")
    world.submit(4, 12, nice=3)
    world.submit(4, 12, nice=-3)
    while not world.preemptions:
        world.step()
    assert (world.state("r0"), world.state("r1")) == (State.PREEMPTED, State.DECODE)
    world.drain()


def test_renice_changes_the_victim_and_the_queue() -> None:
    world = World(make_limits(slots=2, pages=5), policy="priority")
    for _ in range(4):
        world.submit(4, 12)
    world.step()
    world.renice("r0", 5)
    world.renice("r3", -5)
    assert [view.id for view in world.kernel.views()] == ["r3", "r1", "r2", "r0"]
    while not world.preemptions:
        world.step()
    assert world.state("r0") is State.PREEMPTED
    world.drain()


def test_the_last_in_rank_sits_out_while_nobody_needs_its_pages() -> None:
    world = World(make_limits(slots=2, pages=5))
    world.submit(6, 7)
    world.submit(3, 9)
    for _ in range(6):
        assert len(fed(world.step())) == 2
    assert world.kernel.view("r1").pages == 2
    assert fed(world.step()) == [(0, 11, 1, True)]  # r1 needs a third page and there is none
    assert (world.state("r0"), world.state("r1")) == (State.FINISHED, State.DECODE)
    assert fed(world.step()) == [(1, 8, 1, True)]
    world.drain()
    assert world.preemptions == 0


def test_even_the_first_sits_out_while_all_others_hold_promises_and_takes_the_pages_then() -> None:
    world = World(make_limits(slots=2, token_budget=3, pages=7))
    world.submit(3, 12)
    world.submit(19, 9)
    for _ in range(6):
        world.step()
    assert (world.kernel.view("r0").pages, world.state("r1")) == (2, State.PREFILL)
    assert fed(world.step()) == [(1, 10, 3, False)]
    while world.state("r1") is State.PREFILL:
        assert [sequence for sequence, *_ in fed(world.step())] == [1]
    assert fed(world.step()) == [(0, 8, 1, True)]
    assert world.state("r1") is State.PREEMPTED
    assert world.oracle.lives["r1"].gained == 1
    world.drain()


def test_siblings_fork_at_the_prompts_last_token() -> None:
    world = World(make_limits(token_budget=16))
    id = world.submit(7, 4, n=3)
    leading = world.step()
    assert fed(leading) == [(0, 0, 6, False)]
    assert len(leading.started) == 1
    forked = world.step()
    assert fed(forked) == [(0, 6, 1, True), (1, 6, 1, True), (2, 6, 1, True)]
    assert [start.choice for start in forked.started] == [1, 2]
    assert len(forked.copies) == 2, "the last sibling keeps the partial page"
    assert {copy.source for copy in forked.copies} == {forked.copies[0].source}
    stats = world.kernel.stats(False)
    assert (stats.pages_used, stats.pages_shared) == (1 + 3, 1)
    assert world.kernel.view(id).pages == 4
    world.drain()


def test_a_prompt_of_one_token_forks_at_once() -> None:
    world = World()
    world.submit(1, 3, n=2)
    plan = world.step()
    assert fed(plan) == [(0, 0, 1, True), (1, 0, 1, True)]
    assert plan.copies == ()
    world.drain()


def test_a_fork_at_a_page_border_copies_nothing() -> None:
    world = World()
    world.submit(9, 3, n=2)
    world.step()
    plan = world.step()
    assert plan.copies == ()
    assert world.kernel.stats(False).pages_shared == 2
    world.drain()


def test_a_preempted_fork_is_led_by_its_first_live_sequence() -> None:
    world = World(make_limits(slots=3, pages=9, context=36))
    world.submit(6, 20)
    world.submit(7, 10, n=2)
    while not world.preemptions:
        world.step()
    assert world.state("r1") is State.PREEMPTED
    generated = len(world.oracle.lives["r1"].tokens[0])
    while world.state("r1") is State.PREEMPTED:
        plan = world.step()
    assert fed(plan)[-1] == (1, 0, 6, False)
    plan = world.step()
    assert fed(plan)[-2:] == [(1, 6, 1 + generated, True), (2, 6, 1 + generated, True)]
    assert len(plan.copies) == 1
    world.drain()


def test_a_finished_choice_frees_its_row_and_pages_while_its_sibling_goes_on() -> None:
    def lengths(prompt: list[int]) -> list[int]:
        spec = RequestSpec("", "", prompt, Sampling(n=2))
        return [len(expected_tokens(spec, choice, 12)) for choice in range(2)]

    prompt = next([first, 5, 5] for first in range(12) if lengths([first, 5, 5])[0] < min(9, lengths([first, 5, 5])[1]))
    world = World(make_limits(slots=2))
    id = world.submit(prompt, 12, n=2, ignore_eos=False)
    for _ in range(lengths(prompt)[0]):
        world.step()
    before = world.kernel.view(id)
    assert before.completion_tokens == 2 * (lengths(prompt)[0] - 1)
    world.step()
    [finished] = [event for event in world.events if isinstance(event, Output) and event.finish]
    assert (finished.choice, finished.finish) == (0, FinishReason.STOP)
    after = world.kernel.view(id)
    assert after.pages < before.pages
    assert (after.state, after.finish) == (State.DECODE, "stop")
    plan = world.step()
    assert plan.ended == (0,)
    assert [part.sequence for part in plan.sequences] == [1]
    world.drain()


@pytest.mark.parametrize("place", [0, 5])
def test_an_error_ends_its_own_request_only(place: int) -> None:
    world = World()
    prompt = [1, 2, 3, 4, 5, 6]
    prompt[place] = POISON
    world.submit(4, 5)
    bad = world.submit(prompt, 5, n=2)
    world.submit(4, 5)
    world.drain()
    assert [world.state(id) for id in ("r0", bad, "r2")] == [State.FINISHED, State.FAILED, State.FINISHED]
    final = world.oracle.lives[bad].final
    assert (final.error, final.completion_tokens) == ("poison", 0)


def test_a_step_that_fails_is_executed_again_with_the_same_result() -> None:
    plain, broken = World(make_limits(slots=3, pages=9)), World(make_limits(slots=3, pages=9))
    broken.executor.breaks = set(range(100))
    for world in (plain, broken):
        world.submit(5, 12, n=2)
        world.submit(3, 12)
        world.drain()
    assert plain.preemptions > 0
    assert len(broken.executor.breaks) == 100 - broken.oracle.steps
    tokens = [{id: dict(life.tokens) for id, life in world.oracle.lives.items()} for world in (plain, broken)]
    assert tokens[0] == tokens[1]


def test_cancel_tells_the_executor_with_the_next_plan() -> None:
    world = World()
    world.submit(5, 9, n=2)
    waiting = world.submit(5, 9)
    world.step()
    world.step()
    world.cancel("r0")
    assert world.kernel.stats(False).pages_used == world.kernel.view(waiting).pages
    plan = world.step()
    assert plan.ended == (0, 1)
    assert set(world.executor.known) == {2}
    world.drain()


def test_a_request_cancelled_before_it_ran_is_nothing_to_the_executor() -> None:
    world = World(make_limits(slots=1))
    world.submit(5, 2)
    world.step()
    world.cancel(world.submit(5, 2))
    assert world.step().ended == ()
    world.drain()


def test_fail_carries_its_message() -> None:
    world = World()
    id = world.submit(5)
    ended = world.kernel.fail(id, "it was its own fault", 7)[-1]
    assert isinstance(ended, Ended)
    assert (ended.request.state, ended.request.error) == (State.FAILED, "it was its own fault")
    assert ended.request.times.queued == 7


def test_stats_count_what_was_computed() -> None:
    world = World(make_limits(slots=2, pages=5))
    world.submit(4, 12)
    world.submit(4, 12)
    while not world.preemptions:
        world.step()
    again = 4 + world.kernel.view("r1").completion_tokens
    world.drain()
    stats = world.kernel.stats(False)
    assert stats.preemptions == 1
    assert stats.prompt_tokens == 4 + 4 + again
    assert stats.generated_tokens == 24
    assert (stats.accepted, stats.finished, stats.policy, stats.slots) == (2, 2, "fcfs", 2)


def test_a_suspended_request_stands_still_and_goes_on_as_if_nothing_had_been() -> None:
    world = World(make_limits(slots=2, token_budget=8), prefixes=True)
    held, other = world.submit(6, 12), world.submit(6, 12)
    for _ in range(4):
        world.step()
    world.suspend(held)
    before, others = (world.kernel.view(id).completion_tokens for id in (held, other))
    for _ in range(4):
        world.step(took=5)
    assert world.kernel.view(held).completion_tokens == before > 0
    assert world.kernel.view(other).completion_tokens == others + 4
    world.resume(held)
    assert world.state(held) is State.PREEMPTED
    computed = world.kernel.stats(False).prompt_tokens
    world.step()
    assert world.kernel.stats(False).prompt_tokens == computed + 1, "its pages were kept: one token is fed, as before"
    world.drain()
    assert world.oracle.lives[held].final.times.other == 4 * 5


def test_a_request_suspended_in_the_queue_returns_to_it_and_alone_it_lets_the_kernel_idle() -> None:
    world = World(make_limits(slots=1))
    first, second = world.submit(4, 2), world.submit(4, 2)
    world.suspend(second)
    while world.oracle.lives[first].final is None:
        world.step()
    assert world.kernel.idle
    assert world.kernel.plan(world.now) is None
    assert world.kernel.stats(False).suspended == 1
    world.resume(second)
    assert world.state(second) is State.QUEUED
    world.suspend(second)
    world.cancel(second)
    world.drain()
