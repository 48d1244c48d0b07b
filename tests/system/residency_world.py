"""Several models under one memory budget: kernels, symbolic executors and an oracle for each; every step is checked."""

from __future__ import annotations

from typing import Any

from llmosd.errors import StepError
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import POLICIES
from llmosd.system.residency import ModelEntry, ModelSize, Residency
from llmosd.types import (
    Event,
    EvictionMode,
    LoadDone,
    Loaded,
    LoadFailed,
    Plan,
    RequestSpec,
    Sampling,
    State,
    StepResult,
    Unloaded,
)
from tests.system.oracle import Oracle
from tests.system.symbolic import SymbolicExecutor

MINIMUM, PATIENCE = 30, 20
LOAD, UNLOAD = 7, 3  # ns that each takes


class ManyModels:
    """Named a, b, c …; the memory of a model that is unloaded is lost, what the executor knows of sequences is not."""

    def __init__(
        self,
        limits: list[Limits],
        sizes: list[ModelSize],
        budget: int,
        *,
        policy: str = "fcfs",
        pinned: str = "",
        keep_alive: int | None = None,
        prefixes: bool = False,
        eviction: EvictionMode = "auto",
        disk: dict[str, Any] | None = None,
    ) -> None:
        self.budget = budget
        residency = Residency(budget, 0, MINIMUM, PATIENCE)
        self.executors: dict[str, SymbolicExecutor] = {}
        self.oracles: dict[str, Oracle] = {}
        names = sorted("abcdef"[: len(limits)], key=lambda name: name not in pinned)
        for name in names:
            which = ord(name) - ord("a")
            secret = b"a secret" if prefixes else None
            kernel = Kernel(limits[which], POLICIES[policy](), prefixes=secret, model=name, eviction=eviction)
            residency.add(ModelEntry(kernel, sizes[which], name in pinned, keep_alive))
            self.executors[name] = SymbolicExecutor(kernel)
            self.executors[name].disk(**(disk or {}))
            self.executors[name].shrink((), 0)
            self.oracles[name] = Oracle(policy)
        self.kernels = Kernels(residency=residency)
        self.residency = residency
        self.broken: set[str] = set()  # cannot be loaded
        self.models: dict[str, str] = {}  # of requests
        self.events: list[Event] = []
        self.now = 0
        self.steps = 0
        self.served = ""
        self.moved = 0  # pages

    def submit(self, model: str, prompt: int = 4, max_tokens: int | None = 6, n: int = 1, nice: int = 0) -> str:
        id = f"r{len(self.models)}"
        tokens = [(7 * i + len(self.models)) % 12 for i in range(prompt)]
        spec = RequestSpec(id, model, tokens, Sampling(max_tokens=max_tokens, n=n, ignore_eos=True), nice=nice)
        spec = RequestSpec(**{**{f: getattr(spec, f) for f in spec.__slots__}, "arrived": self.now})
        self.oracles[model].submitted(spec, self.kernels.submit(spec, self.now), self.now)
        self.models[id] = model
        return id

    @property
    def live(self) -> list[str]:
        return [id for id, model in self.models.items() if self.oracles[model].lives[id].final is None]

    def state(self, id: str) -> State:
        return self.oracles[self.models[id]].lives[id].state

    def cancel(self, id: str) -> None:
        self._follow(self.kernels.cancel(id, "a person", self.now))

    def suspend(self, id: str) -> None:
        self._follow(self.kernels.suspend(id, self.now)[1])

    def resume(self, id: str) -> None:
        self._follow(self.kernels.resume(id, self.now)[1])

    def renice(self, id: str, nice: int) -> None:
        self.kernels.renice(id, nice, self.now)
        self.oracles[self.models[id]].lives[id].nice = nice

    def resident(self) -> str:
        return "".join(sorted(model.name for model in self.kernels.stats(True).models if model.resident))

    def step(self, took: int = 1) -> Plan | None:
        plan = self.kernels.plan(self.now)
        if plan is None:
            assert self.kernels.idle and self.residency.wake_at() != 0, "work is there but nothing runs"
            return None
        result = self._execute(plan)
        self.now += took
        self._follow(self.kernels.commit(plan, result, self.now))
        self.steps += 1
        self.served += plan.model
        self.kernels.check()
        self.check()
        return plan

    def _execute(self, plan: Plan) -> StepResult:
        unloads = tuple(LoadDone(name, UNLOAD) for name in plan.unloads)
        for name in plan.unloads:
            self.executors[name].shrink((), 0)
        for size in plan.resizes:
            self.executors[size.model].shrink(size.copies, size.pages)
            self.moved += len(size.copies)
        loads = tuple(LoadDone(s.model, LOAD, "it is broken" if s.model in self.broken else None) for s in plan.loads)
        if not plan.model:
            return StepResult(plan.step, (), loads=loads, unloads=unloads)
        try:
            return self.executors[plan.model].execute(plan)
        except StepError:
            return self.executors[plan.model].execute(plan)

    def _follow(self, events: list[Event]) -> None:
        self.events += events
        waiting = {view.id for view in self.kernels.views() if view.position is not None}
        for oracle in self.oracles.values():
            oracle.queue = waiting
        for event in events:
            if not isinstance(event, Loaded | LoadFailed | Unloaded):
                id = event.request.id if hasattr(event, "request") else event.id
                self.oracles[self.models[id]].follow([event])

    def check(self) -> None:
        table = self.residency.table
        assert table.used <= self.budget
        for name, executor in self.executors.items():
            extent = self.residency.members[name].extent if name in self.resident() else 0
            assert all(slot == -1 for page in executor.pages[extent:] for slot in page), "a page without memory is used"

    def drain(self) -> None:
        """Resume all and run to the end within a bound on steps."""
        for id in self.live:
            self.resume(id)
        while self.live:
            self.step(took=3)
            bound = sum(
                oracle.step_bound(self.kernels.kernel(name).limits.page_tokens) for name, oracle in self.oracles.items()
            )
            assert self.steps <= 2 * bound + 100, "no progress"
        while not self.kernels.idle:  # pages of what has ended are on their way
            self.step()
        assert self.kernels.idle
        stats = self.kernels.stats(True)
        assert (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)
        counts = [sum(isinstance(event, kind) for event in self.events) for kind in (Loaded, Unloaded)]
        assert [sum(model.loads for model in stats.models), sum(model.unloads for model in stats.models)] == counts
        assert sum(model.load_ns for model in stats.models) == LOAD * counts[0]
        assert sum(model.unload_ns for model in stats.models) == UNLOAD * counts[1]

    @property
    def loads(self) -> int:
        return sum(isinstance(event, Loaded) for event in self.events)
