"""The loop in which everything meets: drain commands → plan → execute → commit → hand over.

What a step gave is held until the next one computes, so that formatting and sending it does not delay that one: the
event loop's thread and this one share an interpreter lock, which a computing step does not hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto

from llmosd.application.engine_messages import (
    AddModel,
    Answer,
    AtOnce,
    Batch,
    Command,
    Control,
    Hibernate,
    Inspect,
    LoadModel,
    PageContents,
    Pause,
    ReadPages,
    Reply,
    Restore,
    SetPolicy,
    Submit,
    UnloadModel,
    Unpause,
)
from llmosd.application.engine_models import ModelCommands
from llmosd.errors import LlmosError, StepError, Unavailable
from llmosd.system.control import control
from llmosd.system.executor import Executor, Interruptible, PageStore, nothing
from llmosd.system.kernels import Kernels
from llmosd.system.snapshot import Snapshot
from llmosd.types import (
    Event,
    KernelStats,
    Nanoseconds,
    Output,
    Plan,
    RequestId,
    RequestView,
    SequencePlan,
    SequenceResult,
    State,
    StepResult,
    StepStats,
    TransferDone,
)

STOPPED = "the engine was stopped before the request had ended"
COUNT_NS: Nanoseconds = 50_000_000
"""Between counts while steps give nothing but output: a count takes as long as several sequences of a step."""


class Phase(Enum):
    RUNNING = auto()
    DRAINING = auto()  # what is accepted is finished, nothing new is taken
    STOPPING = auto()  # now


@dataclass(frozen=True, slots=True)
class Stop:
    """Takes its turn among the commands: what was posted before it is still accepted."""

    drain: bool


class Inbox:
    """From any thread to the loop's; putting never waits for a step."""

    def __init__(self) -> None:
        self.notify: Callable[[], None] = nothing  # that there is something, in case the loop waits for something else
        self._condition = threading.Condition()
        self._messages: list[Command | Stop] = []

    def put(self, message: Command | Stop) -> None:
        with self._condition:
            self._messages.append(message)
            self._condition.notify()
        self.notify()

    def take(self, wait: bool, at_most_s: float | None = None) -> list[Command | Stop]:
        """All there is; with `wait` at least one, unless none came in so many seconds."""
        if not wait and not self._messages:  # as nearly always between steps
            return []
        with self._condition:
            if wait:
                self._condition.wait_for(lambda: self._messages, at_most_s)
            messages, self._messages = self._messages, []
            return messages


class Loop:
    """Owns kernel and executor; everything here runs on one thread."""

    def __init__(
        self,
        kernel: Kernels,
        executor: Executor,
        inbox: Inbox,
        deliver: Callable[[Batch], None],
        clock: Callable[[], Nanoseconds],
    ) -> None:
        self._kernel = kernel
        self._executor = executor
        self._inbox = inbox
        if isinstance(executor, Interruptible):
            inbox.notify = executor.interrupt
        self._deliver = deliver
        self._models = ModelCommands(kernel)
        self._clock = clock
        self._phase = Phase.RUNNING
        self._in_flight: Plan | None = None
        self._held: Batch | None = None  # what the last step gave
        self._counted = kernel.stats(requests=False)
        self._count_due: Nanoseconds = 0
        self._committed: Nanoseconds | None = None  # when that was; None if the engine was idle since

    def run(self) -> None:
        """Until stopped; what an unexpected exception ends is told so before the exception goes on."""
        try:
            while self._turn():
                pass
            self._fail_all(STOPPED)
        except Exception as error:
            with suppress(Exception):  # the kernel itself may be what broke: the ledger ends what it leaves
                self._fail_all(death(error))
            raise

    def _turn(self) -> bool:
        """One drain of the commands and one step; False when it was the last."""
        was_idle = self._kernel.idle
        if messages := self._inbox.take(was_idle, self._wake_in() if was_idle else None):
            self._serve(messages)
        if expired := self._kernel.expire(self._clock()):
            self._hand_over((), expired)
        if self._phase is Phase.STOPPING:
            return False
        if not self._kernel.idle or (not messages and self._due_in() == 0):
            self._step()
        if not self._kernel.idle:
            return True
        self._release()
        self._committed = None
        if not was_idle:
            self._kernel.check()
        return self._phase is not Phase.DRAINING

    def _wake_in(self) -> float | None:
        """Seconds until something is to be done without a command: of who stands still, a deadline may pass."""
        at = self._kernel.next_deadline
        waits = [self._due_in(), None if at is None else max(0, at - self._clock()) / 1e9]
        return min((wait for wait in waits if wait is not None), default=None)

    def _due_in(self) -> float | None:
        """Seconds until a model without work is to be unloaded."""
        at = self._kernel.residency.wake_at()
        return None if at is None else max(0, at - self._clock()) / 1e9

    # ---- commands

    def _serve(self, messages: list[Command | Stop]) -> None:
        replies, events = list[Reply](), list[Event]()
        for message in messages:
            if isinstance(message, Stop):
                self._stop(message)
                continue
            try:
                if isinstance(message, LoadModel | UnloadModel):
                    self._models.apply(message, self._clock())
                else:
                    replies.append(Reply(message.ticket, self._apply(message, events)))
            except LlmosError as error:
                replies.append(Reply(message.ticket, error))
        self._hand_over([*replies, *self._models.replies()], events)

    def _stop(self, stop: Stop) -> None:
        if self._phase is not Phase.STOPPING:
            self._phase = Phase.DRAINING if stop.drain else Phase.STOPPING

    def _apply(self, command: AtOnce, events: list[Event]) -> Answer:
        now, kernel = self._clock(), self._kernel
        match command:
            case Submit(spec=spec):
                self._check_open()
                events += kernel.submit(spec, now)
                return kernel.view(spec.id)
            case Restore(snapshot=snapshot, arrived=arrived, contents=contents):
                self._check_open()
                events += kernel.restore(snapshot, arrived, now)
                if contents is not None:
                    self._write_pages(snapshot, contents)
                return kernel.view(snapshot.id)
            case Pause(id=id):
                events += kernel.pause(id, now)
                return None
            case Unpause(id=id):
                events += kernel.unpause(id, now)
                return None
            case Control(action=action, selection=selection, owner=owner):
                views, happened = control(kernel, action, selection, owner, now)
                events += happened
                return views
            case Hibernate(ids=ids):
                return self._hibernate(ids, now, events)
            case ReadPages(id=id):
                return self._read_pages(kernel.view(id))
            case AddModel(entry=entry):
                kernel.add(entry)
                return None
            case SetPolicy(policy=policy):
                events += kernel.set_policy(policy, now)
                return None
            case Inspect():
                return kernel.stats(requests=True)

    def _hibernate(
        self, ids: tuple[RequestId, ...] | None, now: Nanoseconds, events: list[Event]
    ) -> tuple[Snapshot, ...]:
        views = self._kernel.views() if ids is None else [self._kernel.view(id) for id in ids]
        for view in views:  # all are there
            events += self._kernel.suspend(view.id, now)[1]
        return tuple(self._kernel.snapshot(view.id, now) for view in views)

    def _read_pages(self, view: RequestView) -> PageContents | None:
        """A copy, so that writing it to disk holds up nobody."""
        store = self._executor
        if view.state is not State.SUSPENDED or not isinstance(store, PageStore):
            return None
        kept, pages = self._kernel.kept(view.id)
        size = store.bytes_per_page(view.model)
        return PageContents(kept, size, store.read_pages(view.model, pages)) if pages and size else None

    def _write_pages(self, snapshot: Snapshot, contents: PageContents) -> None:
        store, size, model = self._executor, contents.bytes_per_page, snapshot.spec.model
        if isinstance(store, PageStore) and size == store.bytes_per_page(model):
            planted, data = self._kernel.plant(snapshot.id, contents.kept), contents.data
            parts = [data[number * size : (number + 1) * size] for number, _ in planted]
            store.write_pages(model, [page for _, page in planted], parts)

    def _check_open(self) -> None:
        if self._phase is not Phase.RUNNING:
            raise Unavailable(f"the engine is {self._phase.name.lower()}: no new requests are taken")

    # ---- steps

    def _step(self) -> None:
        began = self._clock()
        between = began - (began if self._committed is None else self._committed)
        plan = self._in_flight = self._kernel.plan(began)
        assert plan is not None, "requests are live but nothing can run"
        planned = self._clock()
        result = self._execute(plan)
        executed = self._clock()
        events = self._kernel.commit(plan, result, executed)
        self._in_flight = None
        self._committed = committed = self._clock()
        decode, context = _fed(plan.sequences)
        drafts = plan.drafts
        stats = StepStats(
            step=plan.step,
            now=executed,
            sequences=len(plan.sequences),
            prefill_tokens=plan.query_tokens - drafts - decode,
            decode_tokens=decode,
            drafted=drafts,
            accepted=sum(max(0, len(outcome.tokens) - 1) for outcome in result.sequences) if drafts else 0,
            context_tokens=context,
            plan_ns=planned - began,
            execute_ns=executed - planned,
            run_ns=result.run_ns,
            commit_ns=committed - executed,
            model=plan.model,
            between_ns=between,
        )
        self._release()  # in case the step failed before it computed
        self._held = self._batch(self._models.replies(events), events, stats if plan.sequences else None)

    def _execute(self, plan: Plan) -> StepResult:
        """The step; a failed one is tried again, then sequence by sequence, so that the culprit fails alone."""
        try:
            return self._executor.execute(plan, self._release)
        except StepError:
            pass
        try:
            return self._executor.execute(plan, self._release)
        except StepError:
            return self._execute_apart(plan)

    def _execute_apart(self, plan: Plan) -> StepResult:
        """Page copies first and once: a sequence that ran may have written to a page that is a copy's source."""
        results, transfers, run_ns = list[SequenceResult](), tuple[TransferDone, ...](), 0
        try:
            transfers += self._executor.execute(replace(plan, sequences=())).transfers
        except StepError as error:
            return _failed(plan, error.message)
        for part in plan.sequences:
            try:
                result = self._executor.execute(Plan(plan.step, (part,), model=plan.model))
            except StepError as error:
                results.append(SequenceResult(part.sequence, error=error.message))
            else:
                results += result.sequences
                transfers += result.transfers
                run_ns += result.run_ns
        return StepResult(plan.step, tuple(results), run_ns, transfers=transfers)

    # ---- ends

    def _fail_all(self, message: str) -> None:
        """End every live request as failed, the step in flight included."""
        self._release()
        now, events = self._clock(), list[Event]()
        if self._in_flight is not None:
            events += self._kernel.commit(self._in_flight, _failed(self._in_flight, message), now)
        for view in self._kernel.views():
            events += self._kernel.fail(view.id, message, now)
        self._hand_over((), events)

    # ---- handing over

    def _hand_over(self, replies: Iterable[Reply], events: Iterable[Event]) -> None:
        """What no step gave goes at once, behind what is held."""
        self._release()
        if replies or events:
            self._deliver(self._batch(replies, events, None))

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._deliver(held)

    def _batch(self, replies: Iterable[Reply], events: Iterable[Event], step: StepStats | None) -> Batch:
        replies, events = tuple(replies), tuple(events)
        return Batch(replies, events, step, self._count(replies, events))

    def _count(self, replies: tuple[Reply, ...], events: tuple[Event, ...]) -> KernelStats:
        now = self._clock()
        if now >= self._count_due or replies or not all(isinstance(event, Output) for event in events):
            self._counted, self._count_due = self._kernel.stats(requests=False), now + COUNT_NS
        return self._counted


def death(error: BaseException) -> str:
    """What to tell those whose requests die with the engine."""
    return f"the engine died of an internal error ({type(error).__name__}: {error}); the daemon has to be restarted"


def _failed(plan: Plan, message: str) -> StepResult:
    return StepResult(plan.step, tuple(SequenceResult(part.sequence, error=message) for part in plan.sequences))


def _fed(parts: tuple[SequencePlan, ...]) -> tuple[int, int]:
    """(decode, context) tokens of a step; of those fed, one that is sampled from alone or before guesses is decode."""
    decode = context = 0
    for part in parts:
        decode += part.sample and len(part.tokens) == 1 + part.drafts
        context += part.past
    return decode, context
