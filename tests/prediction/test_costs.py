"""Costs are learnt from transfers and steps; with them the chooser does as well as the better of its two ways."""

from __future__ import annotations

from random import Random

import pytest

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.prediction.costs import FittedTransferCost
from llmosd.prediction.step_model import StepModel
from llmosd.system.costs import Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy.fcfs import Fcfs
from llmosd.types import (
    Evicted,
    EvictionMode,
    PageTransfer,
    RequestSpec,
    Restored,
    Sampling,
    TransferDone,
)


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
    costs = Costs(StepModel(), FittedTransferCost(1.2 * transfer / 1e9))  # the probe was off
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
