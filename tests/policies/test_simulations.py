"""Policies under load, on the cost model: bounds that hold at every step, and the known effect of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

import pytest

from llmosd.errors import NotFound
from llmosd.prediction.lengths import MedianLength
from llmosd.system.costs import Costs
from llmosd.system.kernel import Limits
from llmosd.system.policy import POLICIES, Rules
from llmosd.system.policy.fair import Fair
from llmosd.system.policy.priority import Priority
from llmosd.system.request import Request
from llmosd.types import Quota, Quotas, State
from tests.policies.simulation import SECOND, Job, Simulation, mean, no_inversion, poisson, quantile, works

SLOTS = 8
LIMITS = Limits(slots=SLOTS, token_budget=64, queue_limit=100_000, context=512, page_tokens=16, pages=SLOTS * 32)


# ---- fairness


class Measured(Fair):
    """Sums up what users get, by weight, in a book of its own."""

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self.got: Counter[str] = Counter()

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        super().charge(request, prompt_tokens, output_tokens)
        self.got[request.spec.user] += self.rules.prices.cost(prompt_tokens, output_tokens) / request.account.weight


class Gap:
    """The widest difference of two users' service over any interval in which both have something waiting."""

    def __init__(self, policy: Measured) -> None:
        self._policy = policy
        self._range: dict[tuple[str, str], tuple[float, float]] = {}
        self.widest = 0.0

    def __call__(self, simulation: Simulation) -> None:
        got = self._policy.got
        waiting = sorted(user for user, share in self._policy._shares.items() if len(share.queued))
        ranges = {}
        for one, other in combinations(waiting, 2):
            difference = got[one] - got[other]
            low, high = self._range.get((one, other), (difference, difference))
            ranges[one, other] = low, high = min(low, difference), max(high, difference)
            self.widest = max(self.widest, high - low)
        self._range = ranges


WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0, "e": 0.5}
SHAPES = {"a": (60, 2), "b": (2, 24), "c": (30, 4), "d": (8, 12), "e": (100, 1)}  # longest prompt and output


def of_users(random: Random, count: int, per_s: float) -> list[Job]:
    def make(now: int) -> Job:
        user = random.choice("abcde")
        prompt, output = SHAPES[user]
        return Job(now, random.randint(1, prompt), random.randint(1, output), user)

    return poisson(random, per_s, count, make)


@pytest.mark.parametrize("preempts", [False, True])
def test_users_that_wait_are_served_alike(preempts: bool) -> None:
    """Far beyond saturation, so that all wait nearly always: the bounds that `fair.py` derives, with weights."""
    policy = Measured()
    policy.preempts = preempts
    quotas = Quotas(users={user: Quota(weight=weight) for user, weight in WEIGHTS.items()})
    gap = Gap(policy)
    simulation = Simulation(LIMITS, policy, of_users(Random(preempts), 10_000, 200), quotas=quotas, watch=gap)
    simulation.run()
    prices, rules = policy.rules.prices, policy.rules
    pool = LIMITS.pages * LIMITS.page_tokens
    credit = 2 * prices.cost(0, rules.quantum) / min(WEIGHTS.values())
    most = max(max(prices.cost(SHAPES[user][0], 0), prices.cost(0, pool)) / WEIGHTS[user] for user in WEIGHTS)
    assert 0 < gap.widest <= 2 * most
    quantum = prices.cost(0, rules.quantum)
    swing = prices.cost(100, 0) + quantum * (SLOTS + 2) + prices.cost(0, SLOTS)
    assert not preempts or gap.widest <= 2 * swing / min(WEIGHTS.values()) + credit
    assert all(job.state is State.FINISHED for job in simulation.jobs)


def test_a_light_user_is_served_at_once_beside_a_flood() -> None:
    """Under fcfs it waits behind all of the flood; under fair it takes the slot of one of it."""

    def p95(policy: str) -> float:
        flood = [Job(0, 50, 120, "flood") for _ in range(60)]
        light = [Job(second * SECOND, 20, 8, "light") for second in range(1, 20)]
        Simulation(LIMITS, POLICIES[policy](), flood + light).run()
        return quantile((job.ttft for job in light), 0.95)

    alone = Simulation(LIMITS, POLICIES["fair"](), [Job(0, 20, 8, "light")]).run()
    step = 8e-3 + LIMITS.token_budget * 0.35e-3 + SLOTS * 0.4e-3  # the longest there is
    assert p95("fair") <= 2 * alone.jobs[0].ttft + step
    assert p95("fcfs") > 10 * p95("fair")


# ---- priority and its starvation tier


class Watched(Priority):
    """Remembers what bound each request was given when it entered the tier."""

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self.bounds: dict[str, int] = {}

    def _enter_tier(self, request: Request) -> None:
        super()._enter_tier(request)
        self.bounds[request.id] = self._starving[request].bound


@pytest.mark.parametrize("seed", range(3))
def test_no_wait_exceeds_its_bound(seed: int) -> None:
    """More comes in than can be served, most of it at a high priority; whoever starves runs within its bound."""
    random = Random(seed)

    def make(now: int) -> Job:
        nice = 10 if random.random() < 0.1 else -5
        return Job(now, random.randint(1, 90), random.randint(1, 8), nice=nice)

    policy = Watched(Rules(starve_after=SECOND, starve_share=(0.25, 0.5, 0.1)[seed]))
    limits = replace(LIMITS, pages=(SLOTS * 32, 60, 40)[seed])
    simulation = Simulation(limits, policy, poisson(random, 60, 4000, make), watch=lambda _: None).run()
    starving = [job for job in simulation.jobs if job.id in policy.bounds and job.nice == 10]
    waits = [(job.admitted - job.arrived, policy.bounds[job.id] - job.arrived) for job in starving]
    assert len(waits) > 50
    assert all(waited <= bound for waited, bound in waits)
    others = [job.ttft for job in simulation.jobs if job.id not in policy.bounds]
    assert mean(waited / SECOND for waited, _ in waits) > 2 * mean(others), "the tier is no fcfs"


def test_a_more_urgent_request_never_waits_for_a_less_urgent_one() -> None:
    random = Random(5)

    def make(now: int) -> Job:
        return Job(now, random.randint(1, 60), random.randint(1, 8), nice=random.choice((-10, 0, 0, 10)))

    jobs = poisson(random, 60, 5000, make)
    Simulation(LIMITS, Priority(Rules(starve_after=5 * SECOND)), jobs, seen=no_inversion).run()
    first = {nice: mean(job.ttft for job in jobs if job.nice == nice) for nice in (-10, 0, 10)}
    assert first[-10] < first[0] / 2 < first[10] / 4
    assert sum(job.preempted for job in jobs) > 100


# ---- whatever the policy


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_whatever_is_done_to_requests_each_ends_once_and_nothing_idles(policy: str) -> None:
    """Cancelled, suspended, resumed, reniced and moved to other policies at random, half of it in a short pool."""
    random = Random(policy)

    def make(now: int) -> Job:
        return Job(
            now,
            random.randint(1, 40),
            random.randint(1, 6),
            random.choice("abc"),
            random.randint(-5, 5),
            most=12,
            deadline=random.choice((None, SECOND, 9 * SECOND)),
            batch=random.random() < 0.2,
        )

    def disturb(simulation: Simulation) -> None:
        kernel, live = simulation.kernel, list(simulation.kernel._requests)
        if not live or random.random() < 0.9:
            return
        id, now = random.choice(live), simulation.now
        try:
            match random.randrange(6):
                case 0:
                    simulation.note(kernel.cancel(id, "a person", now))
                case 1 | 2:
                    simulation.note(kernel.suspend(id, now)[1])
                case 3:
                    kernel.renice(id, random.randint(-20, 19), now)
                case 4:
                    kernel.set_policy(random.choice(sorted(POLICIES)), now)
                case _:
                    kernel.set_policy(policy, now)
        except NotFound:
            pass
        for request in list(kernel._requests.values()):
            if request.state is State.SUSPENDED and random.random() < 0.3:
                simulation.note(kernel.resume(request.id, now)[1])

    limits = replace(LIMITS, pages=random.choice((SLOTS * 32, 24)))
    jobs = poisson(random, 50, 3000, make)
    simulation = Simulation(limits, POLICIES[policy](), jobs, watch=disturb, seen=works)
    simulation.run()
    while simulation.kernel._requests:
        for id in list(simulation.kernel._requests):
            simulation.note(simulation.kernel.resume(id, simulation.now)[1])
        simulation.run()
    simulation.kernel.check()
    assert Counter(job.state for job in jobs) == {
        State.FINISHED: simulation.kernel.stats(False).finished,
        State.CANCELLED: simulation.kernel.stats(False).cancelled,
    }
    assert not simulation.kernel.stats(False).failed


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_step_of_a_small_run_is_sound(policy: str) -> None:
    random = Random(1)
    jobs = poisson(
        random, 60, 150, lambda now: Job(now, random.randint(1, 60), random.randint(1, 20), random.choice("ab"))
    )
    Simulation(replace(LIMITS, pages=40), POLICIES[policy](), jobs, check_every=1, seen=works).run()
    assert all(job.state is State.FINISHED for job in jobs)


# ---- the known effect of each


class Clairvoyant:
    """Length estimates that are right: `most` is what it gets."""

    def tokens(self, user: str, most: int) -> int:
        return most

    def observe(self, user: str, tokens: int) -> None:
        """It knew."""


def mixed(seed: int, per_s: float, count: int, *, slack: tuple[float, float] = (0.5, 6.0)) -> list[Job]:
    """Mostly short requests, some long, of three users, at three priorities, with deadlines. Known lengths."""
    random = Random(seed)

    def make(now: int) -> Job:
        long = random.random() < 0.1
        prompt, output = (random.randint(100, 300), random.randint(20, 60)) if long else (random.randint(2, 40), 3)
        user = "heavy" if long else random.choice(("x", "y"))
        deadline = round(random.uniform(*slack) * SECOND)
        return Job(now, prompt, output, user, random.choice((-3, 0, 3)), deadline=deadline)

    return poisson(random, per_s, count, make)


@cache
def under(policy: str, per_s: float = 36) -> tuple[Job, ...]:
    return tuple(Simulation(LIMITS, POLICIES[policy](), mixed(3, per_s, 3000)).run().jobs)


def test_no_two_policies_make_the_same_schedule() -> None:
    schedules = {policy: tuple(job.admitted for job in under(policy)) for policy in POLICIES}
    assert len(set(schedules.values())) == len(POLICIES)


@pytest.mark.parametrize(("policy", "tail"), [("sjf", 4.0), ("hrrn", 2.0)])
def test_short_ones_first_lowers_the_mean(policy: str, tail: float) -> None:
    """And what the longest waits make of that: hrrn's tail is bounded by ageing, that of sjf is not."""
    ttft = {name: [job.ttft for job in under(name)] for name in ("fcfs", policy)}
    assert mean(ttft[policy]) < 0.6 * mean(ttft["fcfs"])
    assert quantile(ttft[policy], 0.5) < quantile(ttft["fcfs"], 0.5)
    worst = max(ttft[policy]) / max(ttft["fcfs"])
    assert worst < tail


def test_predicted_lengths_are_nearly_as_good_as_known_ones() -> None:
    jobs = mixed(3, 36, 3000)
    for job in jobs:
        job.most = 100  # what is asked for says nothing
    Simulation(LIMITS, POLICIES["sjf"](), jobs, costs=Costs(lengths=MedianLength())).run()
    assert mean(job.ttft for job in jobs) < 1.3 * mean(job.ttft for job in under("sjf"))


def test_feedback_lets_short_ones_through_without_knowing_lengths() -> None:
    def short(policy: str) -> float:
        return mean(job.ended - job.arrived for job in under(policy) if job.user != "heavy")

    assert short("mlfq") < 0.7 * short("fcfs")


def test_earliest_deadline_first_misses_fewest() -> None:
    """Below saturation; beyond it other orders may miss fewer."""
    missed = {policy: sum(job.late for job in under(policy)) for policy in POLICIES}
    assert missed["edf"] == min(missed.values()) < missed["fcfs"]
