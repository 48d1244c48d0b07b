"""A kernel with a cost-model executor behind an engine, faults to inject, and a listener for what comes out."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from llmosd.application.engine import Batch, Command, Control, Reply
from llmosd.errors import ModelError, StepError
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.control import Kill, Selection
from llmosd.system.executor import Executor, nothing
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import POLICIES
from llmosd.types import Ended, Event, Output, Plan, RequestSpec, RequestView, Sampling, StepResult

CULPRIT = 666  # a prompt token that a faulty executor cannot stand
TICKETS = itertools.count(1)


def make_kernel(slots: int = 4, queue_limit: int = 100) -> Kernel:
    limits = Limits(slots, token_budget=16, queue_limit=queue_limit, context=1000, page_tokens=4, pages=300)
    return Kernel(limits, POLICIES["fcfs"](), model="m")


def make_executor() -> CostModelExecutor:
    """Every sequence runs to its max_tokens."""
    return CostModelExecutor(CostModel(1, 1, 1, 0), lambda _start: 10**9, ManualClock())


def build() -> tuple[Kernels, Executor]:
    return Kernels(make_kernel()), make_executor()


def build_paced() -> tuple[Kernels, Executor]:
    """Slow enough to act while a request runs."""
    return Kernels(make_kernel()), Hooked(make_executor(), lambda _plan: time.sleep(0.02))


def build_nothing() -> tuple[Kernels, Executor]:
    raise ModelError("there is no model")


def cancel(id: str, reason: str = "not needed") -> Control:
    return Control(next(TICKETS), Kill(reason), Selection((id,)))


class Hooked:
    """An executor that does something before each execution: waits, raises, takes notes."""

    def __init__(self, inner: Executor, before: Callable[[Plan], None]) -> None:
        self._inner = inner
        self._before = before

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        self._before(plan)
        return self._inner.execute(plan, meanwhile)


class Fault:
    """Raises StepError when a plan has a sequence whose prompt holds CULPRIT."""

    def __init__(self) -> None:
        self._culprits: set[int] = set()

    def __call__(self, plan: Plan) -> None:
        self._culprits |= {start.sequence for start in plan.started if CULPRIT in start.prompt}
        if self._culprits & {part.sequence for part in plan.sequences}:
            raise StepError("page 17 is out of range")


class Listener:
    """Takes batches from the engine's thread and waits for what is expected of them."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._news = threading.Condition()

    def __call__(self, batch: Batch) -> None:
        with self._news:
            self.batches.append(batch)
            self._news.notify_all()

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def replies(self) -> list[Reply]:
        return [reply for batch in self.batches for reply in batch.replies]

    def reply(self, command: Command) -> object:
        self._wait(lambda: any(reply.ticket == command.ticket for reply in self.replies))
        (reply,) = [reply for reply in self.replies if reply.ticket == command.ticket]
        return reply.value

    def ended(self, id: str) -> RequestView:
        self._wait(lambda: any(isinstance(e, Ended) and e.request.id == id for e in self.events))
        (view,) = [e.request for e in self.events if isinstance(e, Ended) and e.request.id == id]
        return view

    def first_output(self, id: str) -> None:
        self._wait(lambda: any(isinstance(e, Output) and e.id == id for e in self.events))

    def tokens(self, id: str, choice: int = 0) -> list[int]:
        outputs = [e for e in self.events if isinstance(e, Output) and (e.id, e.choice) == (id, choice)]
        return [token for output in outputs for token in output.tokens]

    def _wait(self, true: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(true, timeout=60), "the engine did not say what was expected"


def spec(id: str, max_tokens: int = 5, prompt: int | list[int] = 10, n: int = 1, nice: int = 0) -> RequestSpec:
    tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
    return RequestSpec(id, "m", tokens, Sampling(max_tokens=max_tokens, n=n), nice=nice)
