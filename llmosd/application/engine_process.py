"""An engine in a child process: the same loop behind a pipe, with an interpreter lock of its own."""

from __future__ import annotations

import copyreg
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from llmosd.application.engine import Build, ThreadEngine
from llmosd.application.engine_ledger import Ledger
from llmosd.application.engine_loop import STOPPED, Stop
from llmosd.application.engine_messages import Batch, Command
from llmosd.errors import QueueFull, Unavailable
from llmosd.system.executor import Executor
from llmosd.system.kernel import Kernel
from llmosd.types import KernelStats


def _reduce_queue_full(error: QueueFull) -> tuple[Any, ...]:
    return partial(QueueFull, retry_after_s=error.retry_after_s), (error.message,)


copyreg.pickle(QueueFull, _reduce_queue_full)  # its keyword is required, which BaseException's own reduction loses


class ProcessEngine:
    """An Engine whose `build` runs in a spawned child, so it has to be picklable; its clock is the monotonic one.

    `deliver` is called from a thread of this process. If the child dies, what was live ends failed, as with a thread.
    """

    def __init__(self, build: Build, deliver: Callable[[Batch], None]) -> None:
        self.failure: str | None = None
        self._ledger = Ledger(deliver)
        self._outbox: queue.SimpleQueue[Command | Stop | None] = queue.SimpleQueue()
        self._pipe, self._far_end = multiprocessing.get_context("spawn").Pipe()
        self._child = multiprocessing.get_context("spawn").Process(
            target=_child_main, args=(self._far_end, build), name="engine", daemon=True
        )
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)

    def start(self) -> None:
        self._child.start()
        self._far_end.close()  # else the pipe would stay open when the child is gone
        try:
            first = self._pipe.recv()
        except EOFError:
            raise Unavailable(f"the engine's process died while it was starting ({self._ended()})") from None
        if isinstance(first, BaseException):
            raise first
        self._ledger.open(first)
        self._reader.start()
        threading.Thread(target=self._write, name="engine-writer", daemon=True).start()

    def post(self, command: Command) -> None:
        if self._ledger.take(command.ticket):
            self._outbox.put(command)

    def stop(self, drain: bool) -> None:
        self._outbox.put(Stop(drain))

    def join(self, timeout: float | None = None) -> bool:
        self._reader.join(timeout)
        return not self._reader.is_alive()

    def _write(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._pipe.send(message)
        except OSError:
            pass  # the child is gone; the reader knows

    def _read(self) -> None:
        try:
            while isinstance(message := self._pipe.recv(), Batch):
                self._ledger.pass_on(message)
            self.failure = message
        except (EOFError, OSError):
            self.failure = f"the engine's process died ({self._ended()}); the daemon has to be restarted"
        self._outbox.put(None)
        self._ledger.close(self.failure or STOPPED, time.monotonic_ns())
        self._child.join()

    def _ended(self) -> str:
        self._child.join()
        return f"exit code {self._child.exitcode}"


def _child_main(pipe: Connection, build: Build) -> None:
    """Messages to the parent: KernelStats or an exception first, then batches, last what it died of or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    first, lock = list[KernelStats](), threading.Lock()

    def built() -> tuple[Kernel, Executor]:
        kernel, executor = build()
        first.append(kernel.stats(requests=False))
        return kernel, executor

    def send(message: object) -> None:
        with lock:
            pipe.send(message)

    engine = ThreadEngine(built, send)
    try:
        engine.start()
    except BaseException as error:
        send(error)
        return
    send(first[0])
    threading.Thread(target=_forward, args=(pipe, engine), name="engine-reader", daemon=True).start()
    engine.join()
    send(engine.failure)


def _forward(pipe: Connection, engine: ThreadEngine) -> None:
    """Commands and stops to the engine until the parent is gone."""
    try:
        while True:
            message = pipe.recv()
            if isinstance(message, Stop):
                engine.stop(message.drain)
            else:
                engine.post(message)
    except (EOFError, OSError):
        engine.stop(drain=False)
