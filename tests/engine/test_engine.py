"""The loop under failures, many threads and idleness; and the death of an engine, in which nobody is left waiting."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_world import CULPRIT, TICKETS, Fault, Hooked, Listener, cancel, make_executor, make_kernel, spec

from llmosd.application.engine import Build, Control, Inspect, Submit, ThreadEngine
from llmosd.errors import StepError, Unavailable
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.control import Selection, Suspend
from llmosd.system.executor import Executor, nothing
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import Fcfs
from llmosd.types import Ended, KernelStats, PageTransfer, Plan, State, StepResult, TransferDone

Start = Callable[..., ThreadEngine]


@pytest.fixture
def start(launch: Callable[[Build], ThreadEngine]) -> Start:
    return lambda executor, kernel=None: launch(lambda: (Kernels(kernel or make_kernel()), executor))


def submit(engine: ThreadEngine, *ids: str, prompt: int | list[int] = 10, n: int = 1) -> None:
    for id in ids:
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=6, prompt=prompt, n=n)))


# ---- failed steps


def test_a_step_that_fails_once_is_executed_again(start: Start, listener: Listener) -> None:
    tried = Counter[int]()

    def fail_first(plan: Plan) -> None:
        tried[plan.step] += 1
        if tried[plan.step] == 1:
            raise StepError("out of luck")

    submit(start(Hooked(make_executor(), fail_first)), "a", "b")
    assert {listener.ended(id).state for id in "ab"} == {State.FINISHED}
    assert listener.tokens("a") == listener.tokens("b") == list(range(6))
    assert set(tried.values()) == {2}


def test_the_culprit_of_a_failing_step_fails_alone(start: Start, listener: Listener) -> None:
    hold = threading.Event()
    fault = Fault()

    def before(plan: Plan) -> None:
        assert hold.wait(60)
        fault(plan)

    engine = start(Hooked(make_executor(), before))
    submit(engine, "a")
    submit(engine, "bad", prompt=[1, 2, CULPRIT])
    submit(engine, "b", n=2)
    hold.set()
    assert listener.ended("bad").state is State.FAILED
    assert listener.ended("bad").error == "page 17 is out of range"
    assert {listener.ended(id).state for id in "ab"} == {State.FINISHED}
    assert listener.tokens("a") == listener.tokens("b", 0) == listener.tokens("b", 1) == list(range(6))
    assert engine.failure is None


def test_page_copies_are_not_repeated_between_sequences_run_apart(start: Start, listener: Listener) -> None:
    """A sequence run apart may have written to the source of a copy by the time the next one runs."""
    ran: list[Plan] = []

    def fail_together(plan: Plan) -> None:
        if len(plan.sequences) > 1:
            raise StepError("one at a time")
        ran.append(plan)

    submit(start(Hooked(make_executor(), fail_together)), "a", n=2)
    assert listener.ended("a").state is State.FINISHED
    copying = [plan for plan in ran if plan.copies]
    assert copying
    assert all(not plan.sequences for plan in copying)
    assert Counter(plan.step for plan in copying).most_common(1)[0][1] == 1


def test_page_transfers_set_off_by_a_failing_step_are_not_lost(start: Start, listener: Listener) -> None:
    """Steps of several sequences fail, also those that swap; every request still gets its pages back and ends."""
    ran, hold = list[Plan](), threading.Event()

    def fail_together(plan: Plan) -> None:
        assert hold.wait(60)
        ran.append(plan)
        if len(plan.sequences) > 1:
            raise StepError("one at a time")

    limits = Limits(4, token_budget=16, queue_limit=100, context=1000, page_tokens=4, pages=16, swap_slots=50)
    kernel = Kernel(limits, Fcfs(), model="m", eviction="swap")
    cost = CostModel(1, 1, 1, 0, page_out=5, page_in=5)
    engine = start(Hooked(CostModelExecutor(cost, lambda _start: 10**9, ManualClock()), fail_together), kernel)
    for number, id in enumerate("abcdef"):  # of different lengths, so that not all need a page at once
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=20, prompt=2 + 3 * number)))
    hold.set()
    assert {listener.ended(id).state for id in "abcdef"} == {State.FINISHED}
    assert all(listener.tokens(id) == list(range(20)) for id in "abcdef")
    assert any(plan.page_outs and len(plan.sequences) > 1 for plan in ran)


class StuckDisk:
    """An executor whose page-outs do not end before `free` is set; a plan without sequences waits for that.

    The fourth step does not end before `go_on` is set.
    """

    def __init__(self) -> None:
        self.free, self.go_on, self.waits = threading.Event(), threading.Event(), threading.Event()
        self._posted = threading.Semaphore(0)
        self._out = list[PageTransfer]()
        self._inner = make_executor()

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        assert plan.step != 3 or self.go_on.wait(30)
        self._out += plan.page_outs
        result = self._inner.execute(replace(plan, page_outs=()), meanwhile)
        if not plan.sequences and not self.free.is_set():
            self.waits.set()
            assert self._posted.acquire(timeout=30), "a command waits for a transfer"
        if self.free.is_set():
            result = replace(result, transfers=tuple(TransferDone(out, inward=False, ns=1) for out in self._out))
            self._out.clear()
        return result

    def interrupt(self) -> None:
        self._posted.release()


def test_a_command_does_not_wait_for_a_transfer(start: Start, listener: Listener) -> None:
    """Nothing can run until pages are out, and the disk hangs: requests can be looked at and killed."""
    limits = Limits(4, token_budget=16, queue_limit=100, context=64, page_tokens=4, pages=8, swap_slots=50)
    disk = StuckDisk()
    engine = start(disk, Kernel(limits, Fcfs(), model="m", eviction="swap"))
    engine.post(Submit(next(TICKETS), spec("a", max_tokens=20)))
    listener.first_output("a")
    engine.post(Control(next(TICKETS), Suspend(), Selection(("a",))))
    engine.post(Submit(next(TICKETS), spec("b", prompt=20, max_tokens=4)))
    disk.go_on.set()
    assert disk.waits.wait(30)
    for _ in range(3):
        engine.post(inspect := Inspect(next(TICKETS)))
        assert isinstance(listener.reply(inspect), KernelStats)
    engine.post(cancel("a"))
    assert listener.ended("a").state is State.CANCELLED
    disk.free.set()
    disk.interrupt()
    assert listener.ended("b").state is State.FINISHED


# ---- death


def crash(plan: Plan) -> None:
    if plan.step == 3:
        raise ZeroDivisionError("a defect")


class Impostor:
    """An executor whose results belong to another step, which the kernel refuses."""

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        return replace(make_executor().execute(replace(plan, sequences=())), step=plan.step + 1)


@pytest.mark.parametrize(
    ("executor", "named"), [(Hooked(make_executor(), crash), "ZeroDivisionError"), (Impostor(), "ValueError")]
)
def test_an_engine_that_dies_leaves_nobody_waiting(
    start: Start, listener: Listener, executor: Executor, named: str
) -> None:
    engine = start(executor)
    commands = [Submit(next(TICKETS), spec(f"r{i}", max_tokens=6)) for i in range(8)]  # more than there are slots
    for command in commands:
        engine.post(command)
    assert engine.join(timeout=60)
    for command in commands:
        answer = listener.reply(command)
        if isinstance(answer, Unavailable):  # it came when the engine was dead already
            continue
        ended = listener.ended(command.spec.id)
        assert ended.state is State.FAILED and named in str(ended.error)
        assert ended.times.total > 0
    assert any(isinstance(event, Ended) for event in listener.events)
    assert engine.failure and named in engine.failure
    engine.post(inspect := Inspect(next(TICKETS)))
    error = listener.reply(inspect)
    assert isinstance(error, Unavailable) and named in error.message


# ---- idleness and crowds


def test_an_idle_engine_has_checked_its_kernel_and_does_nothing(listener: Listener) -> None:
    checks: list[int] = []
    reads: list[int] = []

    class Watched(Kernel):
        def check(self) -> None:
            checks.append(len(reads))
            super().check()

    def clock() -> int:
        reads.append(1)
        return time.monotonic_ns()

    limits = make_kernel().limits
    engine = ThreadEngine(lambda: (Kernels(Watched(limits, Fcfs(), model="m")), make_executor()), listener, clock)
    engine.start()
    submit(engine, "a")
    listener.ended("a")
    engine.post(inspect := Inspect(next(TICKETS)))
    listener.reply(inspect)
    assert len(checks) == 1
    before = len(reads)
    time.sleep(0.2)
    assert len(reads) == before
    engine.stop(drain=True)
    assert engine.join(timeout=60)


def test_commands_from_many_threads_each_get_one_reply(start: Start, listener: Listener) -> None:
    engine = start(make_executor())
    posted: list[int] = []

    def client(number: int) -> None:
        for i in range(10):
            id = f"{number}-{i}"
            commands = [Submit(next(TICKETS), spec(id, max_tokens=30)), Inspect(next(TICKETS))]
            if i % 3 == 0:
                commands.append(cancel(id))
            for command in commands:
                posted.append(command.ticket)
                engine.post(command)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop(drain=True)
    assert engine.join(timeout=60)
    assert Counter(reply.ticket for reply in listener.replies) == Counter(posted)
    ends = Counter(event.request.id for event in listener.events if isinstance(event, Ended))
    assert set(ends.values()) == {1}
    assert listener.batches[-1].stats.running == listener.batches[-1].stats.pages_used == 0
