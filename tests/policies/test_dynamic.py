"""What `dynamic` makes of three recorded loads, beside each fixed policy, with an SLO of 1 s and 60 ms a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from llmosd.prediction.lengths import MedianLength
from llmosd.system.costs import Costs, Prices
from llmosd.system.kernel import Limits
from llmosd.system.policy import POLICIES, Policy, Rules
from llmosd.system.policy.dynamic import STANDS, Dynamic
from llmosd.types import PolicyChanged
from tests.policies.simulation import MS, SECOND, Job, Simulation

RULES = Rules(prices=Prices(350_000, 1_400_000), slo_ttft=SECOND, slo_itl=60 * MS)
RECORDED_S = 120


@dataclass(frozen=True)
class Load:
    jobs: tuple[tuple[float, int, int, str, int], ...]  # (arrival in seconds, prompt, output, user, nice)
    pages: int

    def run(self, policy: Policy) -> tuple[Simulation, list[PolicyChanged]]:
        changes = list[PolicyChanged]()

        def note(simulation: Simulation) -> None:
            changes.extend(event for event in simulation.events if isinstance(event, PolicyChanged))

        limits = Limits(slots=16, token_budget=256, queue_limit=100_000, context=2048, page_tokens=16, pages=self.pages)
        jobs = [
            Job(round(at * SECOND), prompt, output, user, nice, deadline=20 * SECOND)
            for at, prompt, output, user, nice in self.jobs
        ]
        return Simulation(limits, policy, jobs, costs=Costs(lengths=MedianLength()), watch=note).run(), changes


def goodput(simulation: Simulation) -> int:
    """Requests within the SLO."""
    ttft, itl = RULES.slo_ttft / SECOND, RULES.slo_itl / SECOND
    return sum(job.ttft <= ttft and job.itl <= itl for job in simulation.jobs)


def record(seed: int, pages: int, per_s: Callable[[float], float], shape: Callable[[Random], tuple[int, int]]) -> Load:
    random, jobs, now = Random(seed), list[tuple[float, int, int, str, int]](), 0.0
    while now < RECORDED_S:
        now += random.expovariate(per_s(now))
        jobs.append((now, *shape(random), random.choice("abcd"), random.choice((-2, 0, 2))))
    return Load(tuple(jobs), pages)


@cache
def loads() -> dict[str, Load]:
    def chat(random: Random) -> tuple[int, int]:
        return random.randint(10, 80), max(1, min(200, round(random.lognormvariate(3, 1))))

    def documents(random: Random) -> tuple[int, int]:
        return random.randint(600, 1500) if random.random() < 0.35 else random.randint(10, 60), random.randint(10, 60)

    def hungry(random: Random) -> tuple[int, int]:
        return random.randint(100, 300), random.randint(50, 200)

    return {
        "bursty chat": record(1, 1024, lambda now: 40 if now % 40 < 10 else 4, chat),
        "long prompts": record(2, 2048, lambda _: 3.2, documents),
        "short of pages": record(3, 90, lambda _: 2.6, hungry),
    }


def goodputs(make: Callable[[Rules], Policy]) -> list[int]:
    return [goodput(load.run(make(RULES))[0]) for load in loads().values()]


@cache
def fixed() -> list[list[int]]:
    return [goodputs(make) for name, make in POLICIES.items() if name != "dynamic"]


def keeps_up(make: Callable[[Rules], Policy]) -> bool:
    """On each load at least 0.95 of the best fixed policy's goodput, and on all together more than any of them."""
    own, best = goodputs(make), [max(column) for column in zip(*fixed(), strict=True)]
    near = all(mine >= 0.95 * of for mine, of in zip(own, best, strict=True))
    return near and sum(own) > max(map(sum, fixed()))


class Frozen(Dynamic):
    """One that sees nothing."""

    def _measure(self) -> None:
        pass


def test_it_keeps_up_with_the_best_fixed_policy_on_each_load_and_beats_all_over_all() -> None:
    assert keeps_up(Dynamic)
    assert not keeps_up(Frozen)


def test_each_change_says_why_and_none_follows_soon() -> None:
    for load in loads().values():
        _, changes = load.run(Dynamic(RULES))
        assert changes
        assert all(change.reason and change.old != change.new for change in changes)
        assert all(later.now - change.now >= STANDS for change, later in pairwise(changes))


def test_a_load_that_is_served_in_time_changes_nothing() -> None:
    calm = record(4, 1024, lambda _: 2.0, lambda random: (random.randint(10, 40), random.randint(5, 20)))
    assert calm.run(Dynamic(RULES))[1] == []
