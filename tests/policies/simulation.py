"""A kernel on the cost model's clock under an open load: what each request got, and what must be true at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.costs import Costs
from llmosd.system.feeding import Draft
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import Policy
from llmosd.system.request import Request
from llmosd.types import UNLIMITED, Ended, Event, Output, Plan, Quotas, RequestSpec, Sampling, State, StateChanged

MS = 1_000_000
SECOND = 1000 * MS
SMALL_MODEL = CostModel(step=8 * MS, prefill=0.35 * MS, decode=0.4 * MS, context=600)


@dataclass(slots=True)
class Job:
    """A request to be, and what became of it. `output` is how long it really gets; `most` what it asks for."""

    arrived: int
    prompt: int
    output: int
    user: str = ""
    nice: int = 0
    most: int = 0
    deadline: int | None = None  # after arrival
    batch: bool = False
    id: str = ""
    admitted: int | None = None
    first: int | None = None
    ended: int | None = None
    state: State | None = None
    preempted: int = 0

    @property
    def ttft(self) -> float:
        """Seconds."""
        assert self.first is not None
        return (self.first - self.arrived) / SECOND

    @property
    def itl(self) -> float:
        """Mean, seconds."""
        assert self.ended is not None and self.first is not None
        return (self.ended - self.first) / max(1, self.output - 1) / SECOND

    @property
    def late(self) -> bool:
        return self.deadline is not None and (self.ended is None or self.ended - self.arrived > self.deadline)

    def spec(self) -> RequestSpec:
        return RequestSpec(
            self.id,
            "m",
            (1,) * self.prompt,
            Sampling(max_tokens=self.most or self.output, seed=self.output),
            user=self.user,
            nice=self.nice,
            arrived=self.arrived,
            service_class="batch" if self.batch else "interactive",
            deadline=None if self.deadline is None else self.arrived + self.deadline,
        )


@dataclass
class Simulation:
    """Runs jobs; `watch` is called after each commit, `seen` after each plan."""

    limits: Limits
    policy: Policy
    jobs: Iterable[Job]
    cost: CostModel = SMALL_MODEL
    costs: Costs | None = None
    quotas: Quotas = UNLIMITED
    check_every: int = 1000
    watch: Callable[[Simulation], None] = lambda _: None
    seen: Callable[[Simulation, Plan], None] = lambda *_: None
    steps: int = 0
    events: list[Event] = field(default_factory=list)  # of the last step

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.kernel = Kernel(self.limits, self.policy, costs=self.costs, quotas=self.quotas)
        self.executor = CostModelExecutor(self.cost, lambda start: start.sampling.seed, self.clock)
        self.jobs = sorted(self.jobs, key=lambda job: job.arrived)
        for number, job in enumerate(self.jobs):
            job.id = f"r{number}"
        self.by_id = {job.id: job for job in self.jobs}
        self._coming = list(reversed(self.jobs))

    @property
    def now(self) -> int:
        return self.clock.now

    @property
    def running(self) -> list[Request]:
        return self.kernel._scheduler.running

    @property
    def waiting(self) -> list[Request]:
        return [request for request in self.kernel._requests.values() if request.waiting]

    def run(self, until: int | None = None) -> Simulation:
        """Until all has ended, or that time has passed."""
        while (self._coming or not self.kernel.idle) and (until is None or self.now < until):
            self.arrive()
            if self.kernel.idle:
                self.clock.now = max(self.now, self._coming[-1].arrived)
            else:
                self.step()
        return self

    def arrive(self) -> None:
        while self._coming and self._coming[-1].arrived <= self.now:
            self.kernel.submit(self._coming.pop().spec(), self.now)

    def step(self) -> None:
        plan = self.kernel.plan(self.now)
        assert plan is not None
        self.seen(self, plan)
        self.events = self.kernel.commit(plan, self.executor.execute(plan), self.now)
        self.note(self.events)
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.kernel.check()
        self.watch(self)

    def note(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Output(id=id, now=now) if self.by_id[id].first is None:
                    self.by_id[id].first = now
                case StateChanged(id=id, new=State.PREFILL, now=now) if self.by_id[id].admitted is None:
                    self.by_id[id].admitted = now
                case StateChanged(id=id, is_preemption=True):
                    self.by_id[id].preempted += 1
                case Ended(request=view, now=now):
                    job = self.by_id[view.id]
                    assert job.ended is None, "ended twice"
                    job.ended, job.state = now, view.state


def works(simulation: Simulation, plan: Plan) -> None:
    """Nothing waits that could run: the step is full, or the head of the queue finds no slot or no pages."""
    scheduler, head = simulation.kernel._scheduler, simulation.kernel.policy.head()
    left = simulation.limits.token_budget - plan.query_tokens
    if head is not None and left > 0:
        assert scheduler._room_for(head, Draft(left)) is None, f"{head.id} waits although it could run"


def no_inversion(simulation: Simulation, plan: Plan) -> None:
    """While a step has tokens left, none waits for one of greater nice that could give way; starving ones aside."""
    policy = simulation.kernel.policy
    if plan.query_tokens == simulation.limits.token_budget:
        return
    fed = {part.sequence for part in plan.sequences}
    worst = max(
        (
            request.nice
            for request in simulation.running
            if request.state is State.DECODE and not policy.starving(request) and request.live[0].id in fed
        ),
        default=-99,
    )
    best = min((request.nice for request in simulation.waiting if not policy.starving(request)), default=99)
    assert best >= worst, f"nice {best} waits while nice {worst} runs"


def poisson(random: Random, per_s: float, count: int, make: Callable[[int], Job]) -> list[Job]:
    jobs, now = list[Job](), 0.0
    for _ in range(count):
        now += random.expovariate(per_s)
        jobs.append(make(round(now * SECOND)))
    return jobs


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def quantile(values: Iterable[float], q: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(q * len(found)))]
