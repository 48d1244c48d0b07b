"""Several models behind one face: each has a kernel of its own, and each step serves one of them.

A request belongs to the kernel of its model from submit to its end. No I/O, no clock; one thread calls it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from llmosd.errors import InvalidRequest, NotFound
from llmosd.system.accounts import by_user
from llmosd.system.kernel import Kernel
from llmosd.system.snapshot import KeptPages, Snapshot
from llmosd.system.turns import Turns
from llmosd.types import (
    NICE_MAX,
    Event,
    KernelStats,
    Nanoseconds,
    Plan,
    RequestId,
    RequestSpec,
    RequestView,
    StepResult,
)

_LAST = (NICE_MAX + 1,)  # of whoever has but pages on their way
_ADDED_UP = [item.name for item in fields(KernelStats) if item.type == "int" and item.name != "page_tokens"]


class Kernels:
    """What a kernel does, for requests of any of its models; the first one is the default.

    Errors are those of `Kernel`, and NotFound for a model that is not among them.
    """

    def __init__(self, first: Kernel, *others: Kernel) -> None:
        self._first = first
        self._kernels = {kernel.model: kernel for kernel in (first, *others)}
        self._turns = Turns()
        self._in_flight: tuple[Plan, Nanoseconds] | None = None  # and when it was made

    def kernel(self, model: str) -> Kernel:
        try:
            return self._kernels[model]
        except KeyError:
            raise NotFound(f"no model {model!r} is served here", param="model") from None

    # ---- commands

    def submit(self, spec: RequestSpec, now: Nanoseconds) -> list[Event]:
        kernel = self.kernel(spec.model)
        self._check_new(spec.id)
        return kernel.submit(spec, now)

    def cancel(self, id: RequestId, reason: str, now: Nanoseconds) -> list[Event]:
        return self._of(id).cancel(id, reason, now)

    def fail(self, id: RequestId, message: str, now: Nanoseconds) -> list[Event]:
        return self._of(id).fail(id, message, now)

    def renice(self, id: RequestId, nice: int, now: Nanoseconds) -> RequestView:
        return self._of(id).renice(id, nice, now)

    def suspend(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        return self._of(id).suspend(id, now)

    def resume(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        return self._of(id).resume(id, now)

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
        """The next step, of the model whose turn it is."""
        if self.idle:
            return None
        busy = [
            (_LAST if kernel.urgency is None else kernel.urgency, kernel.model)
            for kernel in self._kernels.values()
            if not kernel.idle
        ]
        plan = self._kernels[self._turns.next(busy)].plan(now)
        self._in_flight = (plan, now) if plan else None
        return plan

    def commit(self, plan: Plan, result: StepResult, now: Nanoseconds) -> list[Event]:
        if self._in_flight is None or plan is not self._in_flight[0]:
            raise ValueError(f"step {plan.step} of {plan.model} is not the step in flight")
        events = self._kernels[plan.model].commit(plan, result, now)
        self._turns.charge(plan.model, now - self._in_flight[1])
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
        """Sums over all models; what cannot be added up is the default model's."""
        return _sum(kernel.stats(requests) for kernel in self._kernels.values())

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds; between steps only."""
        assert self._in_flight is None, "check() with a plan in flight"
        ids = [view.id for view in self.views()]
        assert len(set(ids)) == len(ids), "a request is in two kernels"
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
    first, *others = stats
    if not others:
        return first
    numbers = {name: sum(getattr(one, name) for one in (first, *others)) for name in _ADDED_UP}
    requests = tuple(view for one in (first, *others) for view in one.requests)
    users = by_user(usage for one in (first, *others) for usage in one.users)
    pools = tuple(pool for one in (first, *others) for pool in one.pools)
    return replace(first, **numbers, requests=requests, users=users, pools=pools)
