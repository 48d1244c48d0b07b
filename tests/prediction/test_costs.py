"""Costs are learnt from steps and transfers; with them the chooser does as well as the better of its two ways."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.prediction.costs import FittedPrefillCost, FittedTransferCost
from llmosd.system.costs import Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy.fcfs import Fcfs
from llmosd.types import (
    Evicted,
    EvictionMode,
    PageTransfer,
    Plan,
    RequestSpec,
    Restored,
    Sampling,
    SequencePlan,
    StepResult,
    TransferDone,
)


def step(decodes: int, chunk: int, past: int) -> Plan:
    parts = [SequencePlan(id, id, [1], past=100, sample=True) for id in range(decodes)]
    if chunk:
        parts.append(SequencePlan(99, 31, [1] * chunk, past=past, sample=False))
    return Plan(0, tuple(parts))


@given(
    step_s=st.floats(1e-3, 3e-2),
    decode_s=st.floats(1e-4, 3e-3),
    token_s=st.floats(5e-5, 5e-3),
    context_s=st.sampled_from([0.0, 1e-7, 1e-6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_the_cost_of_prefill_is_learnt_from_mixed_steps(
    step_s: float, decode_s: float, token_s: float, context_s: float, seed: int
) -> None:
    """Through noise of 5 % and a pause of the machine in one step of fifty."""
    random, cost = Random(seed), FittedPrefillCost()
    for number in range(600):
        decodes = random.randint(0, 16)
        chunk, past = random.choice([0, 256 - decodes, random.randint(2, 240)]), random.randint(0, 2000)
        took = step_s + decodes * decode_s + chunk * (token_s + (past + chunk / 2) * context_s)
        took *= random.uniform(0.95, 1.05)
        took += 0.5 if number % 50 == 49 else 0.0
        if decodes or chunk:
            cost.observe(step(decodes, chunk, past), StepResult(0, (), execute_ns=round(took * 1e9)))
    truth = 200 * (token_s + (500 + 100) * context_s)
    assert cost.seconds(200, 500) == pytest.approx(truth, rel=0.35, abs=0.02)
    assert all(coefficient >= 0 for coefficient in cost.coefficients)


def test_before_anything_was_seen_and_without_times_the_first_guess_stands() -> None:
    cost = FittedPrefillCost()
    guess = cost.seconds(100, 0)
    cost.observe(step(3, 10, 0), StepResult(0, ()))
    cost.observe(Plan(0, ()), StepResult(0, (), execute_ns=10**9))
    assert cost.seconds(100, 0) == guess > 0


def test_transfers_are_learnt_by_direction_and_a_pause_counts_little() -> None:
    cost = FittedTransferCost()
    assert cost.seconds(1, 1) == pytest.approx(2e-3)
    for number in range(200):
        for inward, ns in ((False, 4_000_000), (True, 300_000)):
            late = 1_000_000_000 if number % 50 == 49 else 0
            cost.observe(TransferDone(PageTransfer(0, 0), inward, ns + late))
        cost.observe(TransferDone(PageTransfer(0, 0), False, 10**12, "broken"))
    assert cost.seconds(1, 0) == pytest.approx(4e-3, rel=0.1)
    assert cost.seconds(0, 10) == pytest.approx(3e-3, rel=0.1)


# ---- kernel, cost model and manual clock

MACHINE = {"step": 8e6, "prefill": 3.5e5, "decode": 4e5, "context": 600.0}
LOADS: dict[str, tuple[tuple[int, int], float]] = {
    "short prompts": ((16, 60), 4e5),
    "long prompts": ((500, 1500), 4e5),
    "slow disk": ((60, 600), 4e8),
    "a disk that is worth it for some": ((20, 900), 4e6),
}


def run(load: str, mode: EvictionMode) -> tuple[float, set[str], list[Restored]]:
    """(seconds, ways taken, what came of them) of 64 requests in a pool of an eighth of what they ask for."""
    (shortest, longest), transfer = LOADS[load]
    random, clock = Random(1), ManualClock()
    shapes = [(random.randint(shortest, longest), random.randint(100, 400)) for _ in range(64)]
    asked = sum(-(-(prompt + tokens) // 32) for prompt, tokens in shapes)
    limits = Limits(32, 256, 64, 4096, 32, max(asked // 8, 60), asked)
    costs = Costs(FittedPrefillCost(), FittedTransferCost(1.2 * transfer / 1e9))  # the probe was off
    kernel = Kernel(limits, Fcfs(), prefixes=b"a secret", eviction=mode, costs=costs)
    machine = CostModel(**MACHINE, page_out=transfer, page_in=transfer)
    executor = CostModelExecutor(machine, lambda _: 10**9, clock)
    common = [random.randrange(1000) for _ in range(longest)]
    for number, (prompt, tokens) in enumerate(shapes):
        own = [random.randrange(1000) for _ in range(prompt)]
        text = common[: prompt // 2] + own[prompt // 2 :] if number % 2 else own
        kernel.submit(RequestSpec(f"r{number}", "m", text, Sampling(max_tokens=tokens)), clock.now)
    ways, restored = set[str](), list[Restored]()
    while plan := kernel.plan(clock.now):
        for event in kernel.commit(plan, executor.execute(plan), clock.now):
            if isinstance(event, Evicted):
                ways.add(event.way)
            elif isinstance(event, Restored):
                restored.append(event)
    assert kernel.stats(False).finished == 64
    return clock.now / 1e9, ways, restored


@pytest.mark.parametrize("load", LOADS)
def test_the_chooser_is_as_fast_as_the_better_way(load: str) -> None:
    recompute, swap = (run(load, mode)[0] for mode in ("recompute", "swap"))
    chosen, *_ = run(load, "auto")
    assert chosen <= 1.02 * min(recompute, swap)


def test_both_ways_are_taken_where_each_is_cheaper_for_some() -> None:
    _, ways, restored = run("a disk that is worth it for some", "auto")
    assert ways == {"recompute", "swap"}
    assert len(restored) > 3
