"""What planning costs: CPU time of `Kernel.plan` with 32 running and 10, 1,000 and 10,000 queued, under each policy.

No model is needed: the cost model is the executor, and only plans are timed, on the thread's own CPU clock. Requests of
twenty users end, are admitted and give way all the time; the median plan mostly feeds decodes, the mean has admissions
and preemptions in it. The share is of a step of `--step-ms`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random
from statistics import mean, median

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import RequestSpec, Sampling

RUNNING, QUEUED = 32, (10, 1000, 10_000)
PLANS, WARM_UP, ROUNDS = 300, 20, 3
COST = CostModel(8e6, 3.5e5, 4e5, 600)


def plans(policy: str, queued: int) -> list[int]:
    """CPU nanoseconds of each plan, with the queue kept as long as it is asked for."""
    random, clock = Random(queued), ManualClock()
    limits = Limits(RUNNING, 256, 20_000, 2048, 32, RUNNING * 16)
    kernel = Kernel(limits, POLICIES[policy]())
    executor = CostModelExecutor(COST, lambda start: start.sampling.seed, clock)
    submitted = 0

    def submit() -> None:
        nonlocal submitted
        sampling = Sampling(max_tokens=200, seed=random.randint(20, 120))
        user, nice = f"user{random.randrange(20)}", random.randint(-5, 5)
        prompt = (1,) * random.randint(10, 60)
        kernel.submit(RequestSpec(f"r{submitted}", "m", prompt, sampling, user=user, nice=nice), clock.now)
        submitted += 1

    times = list[int]()
    while len(times) < ROUNDS * PLANS + WARM_UP:
        while kernel.stats(False).waiting < queued:
            submit()
        start = time.thread_time_ns()
        plan = kernel.plan(clock.now)
        times.append(time.thread_time_ns() - start)
        assert plan is not None
        kernel.commit(plan, executor.execute(plan), clock.now)
    return times[WARM_UP:]


def measure(policy: str, queued: int) -> dict[str, float]:
    """Microseconds; the round with the least median: what other work on the machine adds is not the plan's."""
    times = [ns / 1e3 for ns in plans(policy, queued)]
    rounds = [times[start : start + PLANS] for start in range(0, len(times), PLANS)]
    best = min(rounds, key=median)
    return {"median_us": median(best), "mean_us": mean(best), "p99_us": sorted(best)[int(0.99 * len(best))]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--step-ms", type=float, default=60.0, help="time of a step that the share is of")
    args = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'policy':10}{'queued':>8}{'median µs':>11}{'mean µs':>11}{'p99 µs':>11}{'of a step':>11}")
    for policy in POLICIES:
        for queued in QUEUED:
            row = found.setdefault(policy, {})[str(queued)] = measure(policy, queued)
            share = row["mean_us"] / 1e3 / args.step_ms
            numbers = "".join(f"{row[name]:>11.0f}" for name in ("median_us", "mean_us", "p99_us"))
            print(f"{policy:10}{queued:>8}{numbers}{share:>11.2%}")
    if args.json:
        result = {"python": sys.version.split()[0], "running": RUNNING, "step_ms": args.step_ms, "policies": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
