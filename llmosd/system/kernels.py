"""Several models behind one face: each has a kernel of its own, and each step serves one of them.

A request belongs to the kernel of its model from submit to its end. No I/O, no clock; one thread calls it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from llmosd.errors import InvalidRequest, NotFound
from llmosd.system.accounts import by_user
from llmosd.system.kernel import Kernel
from llmosd.system.residency import ModelEntry, Residency
from llmosd.system.snapshot import KeptPages, Snapshot
from llmosd.system.turns import Turns
from llmosd.types import (
    Event,
    KernelStats,
    ModelStats,
    Nanoseconds,
    Plan,
    RequestId,
    RequestSpec,
    RequestView,
    StepResult,
)

_ADDED_UP = [item.name for item in fields(KernelStats) if item.type == "int" and item.name != "page_tokens"]


class Kernels:
    """What a kernel does, for requests of any of its models; the first one is the default.

    Errors are those of `Kernel`, and NotFound for a model that is not among them.
    """

    def __init__(self, *kernels: Kernel, residency: Residency | None = None) -> None:
        """Of those in `residency`, or of these with memory for all of them."""
        self.residency = residency or Residency()
        self._kernels: dict[str, Kernel] = {}
        for member in self.residency.members.values():
            self._kernels[member.name] = member.kernel
        for kernel in kernels:
            self.add(ModelEntry(kernel))
            self.residency.start(kernel.model)
        self._turns = Turns()
        self._events: list[Event] = []  # of planning, to go out with the commit
        self._changes = 0
        self._in_flight: tuple[Plan, Nanoseconds, Kernel | None] | None = None  # when it was made, and by whom

    def kernel(self, model: str) -> Kernel:
        try:
            return self._kernels[model]
        except KeyError:
            raise NotFound(f"no model {model!r} is served here", param="model") from None

    def add(self, entry: ModelEntry) -> None:
        """Make a model known; it is loaded when it is asked for. Raises DoesNotFit where it could not be."""
        if entry.kernel.model not in self._kernels:
            self.residency.add(entry)
            for first in list(self._kernels.values())[:1]:
                entry.kernel.set_policy(first.policy.name, 0)
            self._kernels[entry.kernel.model] = entry.kernel

    # ---- commands

    def load(self, model: str, now: Nanoseconds) -> ModelStats:
        """Load it without a request, as soon as there is room; the result says whether it is there already."""
        self.kernel(model)
        self.residency.load(model, now)
        return self.model(model)

    def unload(self, model: str) -> ModelStats:
        """Unload it as soon as none of its requests runs or waits. Raises InvalidRequest for one that is pinned."""
        self.kernel(model)
        self.residency.unload(model)
        return self.model(model)

    def model(self, model: str) -> ModelStats:
        return self.residency.members[model].stats()

    def submit(self, spec: RequestSpec, now: Nanoseconds) -> list[Event]:
        kernel = self.kernel(spec.model)
        self._check_new(spec.id)
        events = kernel.submit(spec, now)
        self.residency.asked(spec.model, now)
        return events

    def cancel(self, id: RequestId, reason: str, now: Nanoseconds) -> list[Event]:
        return self._of(id).cancel(id, reason, now)

    def fail(self, id: RequestId, message: str, now: Nanoseconds) -> list[Event]:
        return self._of(id).fail(id, message, now)

    def renice(self, id: RequestId, nice: int, now: Nanoseconds) -> RequestView:
        return self._of(id).renice(id, nice, now)

    def suspend(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        return self._of(id).suspend(id, now)

    def resume(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        kernel = self._of(id)
        answer = kernel.resume(id, now)
        self.residency.asked(kernel.model, now)
        return answer

    def pause(self, id: RequestId, now: Nanoseconds) -> list[Event]:
        return self._of(id).pause(id, now)

    def unpause(self, id: RequestId, now: Nanoseconds) -> list[Event]:
        kernel = self._of(id)
        events = kernel.unpause(id, now)
        self.residency.asked(kernel.model, now)
        return events

    def set_policy(self, name: str, now: Nanoseconds) -> list[Event]:
        return [event for kernel in self._kernels.values() for event in kernel.set_policy(name, now)]

    def expire(self, now: Nanoseconds) -> list[Event]:
        return [event for kernel in self._kernels.values() for event in kernel.expire(now)]

    @property
    def next_deadline(self) -> Nanoseconds | None:
        times = [kernel.next_deadline for kernel in self._kernels.values()]
        return min((at for at in times if at is not None), default=None)

    def restore(self, snapshot: Snapshot, arrived: Nanoseconds, now: Nanoseconds) -> list[Event]:
        kernel = self.kernel(snapshot.spec.model)
        self._check_new(snapshot.id)
        return kernel.restore(snapshot, arrived, now)

    def snapshot(self, id: RequestId, now: Nanoseconds) -> Snapshot:
        return self._of(id).snapshot(id, now)

    def kept(self, id: RequestId) -> tuple[KeptPages, tuple[int, ...]]:
        return self._of(id).kept(id)

    def plant(self, id: RequestId, kept: KeptPages) -> list[tuple[int, int]]:
        return self._of(id).plant(id, kept)

    # ---- plan → execute → commit

    def plan(self, now: Nanoseconds) -> Plan | None:
        """The next step, of the model whose turn it is; or, without sequences, what has to be loaded and unloaded."""
        if change := self._change(now):
            self._in_flight = change, now, None
            return change
        serving = self.residency.serving()
        if not serving:
            return None
        member = self.residency.members[self._turns.next(serving, self.residency.urgency)]
        plan = member.kernel.plan(now, member.admits)
        self._in_flight = (plan, now, member.kernel) if plan else None
        return plan

    def _change(self, now: Nanoseconds) -> Plan | None:
        change = self.residency.arrange(now)
        self._events += change.events
        if not (change.unloads or change.resizes or change.loads):
            return None
        self._changes += 1
        parts = (tuple(change.unloads), tuple(change.resizes), tuple(change.loads))
        return Plan(self._changes, (), unloads=parts[0], resizes=parts[1], loads=parts[2])

    def commit(self, plan: Plan, result: StepResult, now: Nanoseconds) -> list[Event]:
        if self._in_flight is None or plan is not self._in_flight[0]:
            raise ValueError(f"step {plan.step} of {plan.model} is not the step in flight")
        _, planned, kernel = self._in_flight
        events = list[Event]()
        if kernel is not None:
            events += kernel.commit(plan, result, now)
            self._turns.charge(kernel.model, now - planned)
            self.residency.members[kernel.model].used = now
        events, self._events = self._events + events, []
        for done in result.unloads:
            events += self.residency.unloaded(done, now)
        for done in result.loads:
            events += self.residency.loaded(done, now)
        self._in_flight = None
        return events

    # ---- inspection

    @property
    def idle(self) -> bool:
        return all(kernel.idle for kernel in self._kernels.values())

    def view(self, id: RequestId) -> RequestView:
        return self._of(id).view(id)

    def views(self) -> list[RequestView]:
        """All live requests, model by model, in rank order."""
        return [view for kernel in self._kernels.values() for view in kernel.views()]

    def stats(self, requests: bool) -> KernelStats:
        """Sums over all models; what cannot be added up is the first one's."""
        stats = _sum(kernel.stats(requests) for kernel in self._kernels.values())
        if not requests:
            return stats
        table = self.residency.table
        return replace(
            stats,
            budget=table.budget,
            budget_free=table.free,
            fragmentation=table.fragmentation,
            models=self.residency.stats(),
            segments=table.segments,
        )

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds; between steps only."""
        assert self._in_flight is None, "check() with a plan in flight"
        ids = [view.id for view in self.views()]
        assert len(set(ids)) == len(ids), "a request is in two kernels"
        self.residency.check()
        for kernel in self._kernels.values():
            kernel.check()

    def _check_new(self, id: RequestId) -> None:
        if any(id in kernel for kernel in self._kernels.values()):
            raise InvalidRequest(f"request {id} exists already", param="id")

    def _of(self, id: RequestId) -> Kernel:
        for kernel in self._kernels.values():
            if id in kernel:
                return kernel
        raise NotFound(f"no live request {id}", param="id")


def _sum(stats: Iterable[KernelStats]) -> KernelStats:
    parts = tuple(stats)
    if len(parts) == 1:
        return parts[0]
    numbers = {name: sum(getattr(one, name) for one in parts) for name in _ADDED_UP}
    requests = tuple(view for one in parts for view in one.requests)
    users = by_user(usage for one in parts for usage in one.users)
    pools = tuple(pool for one in parts for pool in one.pools)
    return replace(parts[0], **numbers, requests=requests, users=users, pools=pools, parts=parts)
