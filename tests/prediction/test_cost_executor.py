from __future__ import annotations

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.executor import Executor
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy.fcfs import Fcfs
from llmosd.types import (
    Ended,
    FinishReason,
    Output,
    PageTransfer,
    Plan,
    RequestSpec,
    Sampling,
    SequencePlan,
    SequenceStart,
    TransferDone,
)

COST = CostModel(step=1000, prefill=10, decode=100, context=0.5)


def test_a_step_costs_what_the_formula_says() -> None:
    chunk = SequencePlan(0, 0, [1, 2, 3, 4], past=8, sample=False)
    decodes = [SequencePlan(id, id, [5], past=20, sample=True) for id in (1, 2)]
    assert COST.step_time(Plan(0, (chunk, *decodes))) == 1000 + 4 * 10 + 2 * 100 + 24


def test_a_plan_can_be_repeated() -> None:
    executor: Executor = CostModelExecutor(COST, lambda _: 1, ManualClock())
    start = SequenceStart(0, 0, [1, 2], Sampling(max_tokens=5))
    plan = Plan(0, (SequencePlan(0, 0, [1, 2], past=0, sample=True),), started=(start,))
    assert executor.execute(plan) == executor.execute(plan)


def test_a_run_takes_the_sum_of_its_steps_and_gives_each_choice_its_length() -> None:
    clock = ManualClock(now=50)
    kernel = Kernel(Limits(slots=4, token_budget=8, queue_limit=9, context=64, page_tokens=4, pages=64), Fcfs())
    executor = CostModelExecutor(COST, lambda start: 2 + start.choice, clock)
    kernel.submit(RequestSpec("stop", "m", [1] * 7, Sampling(n=2), arrived=50), clock.now)
    kernel.submit(RequestSpec("length", "m", [1] * 3, Sampling(max_tokens=1), arrived=50), clock.now)
    events, steps = [], 0
    while plan := kernel.plan(clock.now):
        events += kernel.commit(plan, executor.execute(plan), clock.now)
        steps += 1
    ended = {event.request.id: event.request for event in events if isinstance(event, Ended)}
    assert {id: (view.finish, view.completion_tokens) for id, view in ended.items()} == {
        "stop": ("stop,stop", 5),
        "length": (FinishReason.LENGTH, 1),
    }
    # 1: six of seven prompt tokens and two of three; 2: two siblings fork, the third token; 3: both; 4: the second
    assert steps == 4
    contexts = (6 + 6 + 2) + (7 + 7) + 8
    assert clock.now - 50 == 4 * 1000 + 8 * 10 + (3 + 2 + 1) * 100 + contexts / 2
    assert ended["stop"].times.total == clock.now - 50
    outputs = [event for event in events if isinstance(event, Output) and event.id == "stop" and event.choice == 1]
    assert [event.tokens for event in outputs] == [(0,), (1,), (2,)]


def test_pages_move_beside_the_steps_one_after_the_other() -> None:
    """The disk is busy until 2×700 + 300 = 1700 ns from the first plan on; a step takes 1100."""
    clock = ManualClock(now=50)
    cost = CostModel(step=1000, prefill=10, decode=100, context=0, page_out=700, page_in=300)
    executor = CostModelExecutor(cost, lambda _: 9, clock)
    outs = PageTransfer(1, 4), PageTransfer(2, 5)
    inward = PageTransfer(3, 6)
    start = SequenceStart(0, 0, [1], Sampling(max_tokens=5))
    plan = Plan(0, (SequencePlan(0, 0, [1], past=0, sample=True),), (), (start,), page_outs=outs, page_ins=(inward,))
    assert executor.execute(plan).transfers == (TransferDone(outs[0], False, 700),)
    assert clock.now == 50 + 1100
    assert executor.execute(plan).transfers == (TransferDone(outs[1], False, 700), TransferDone(inward, True, 300))
    assert executor.execute(Plan(1, (), page_ins=(inward,))).transfers == (TransferDone(inward, True, 300),)
    assert clock.now == 50 + 2 * 1100 + 300, "a step without sequences takes as long as the transfer it waits for"
    assert executor.execute(Plan(2, ())).transfers == ()
    assert clock.now == 50 + 2 * 1100 + 300
