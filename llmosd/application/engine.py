"""An engine seen from outside: commands in, batches out, whichever thread or process it lives in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from llmosd.application.engine_ledger import Ledger
from llmosd.application.engine_loop import STOPPED, Inbox, Loop, Stop, death
from llmosd.application.engine_messages import (
    AddModel,
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
from llmosd.system.executor import Executor
from llmosd.system.kernels import Kernels
from llmosd.types import Nanoseconds

__all__ = [
    "AddModel",
    "Batch",
    "Build",
    "Command",
    "Control",
    "Engine",
    "Hibernate",
    "Inspect",
    "LoadModel",
    "PageContents",
    "Pause",
    "ReadPages",
    "Reply",
    "Restore",
    "SetPolicy",
    "Submit",
    "ThreadEngine",
    "UnloadModel",
    "Unpause",
]

log = logging.getLogger(__name__)

Build = Callable[[], tuple[Kernels, Executor]]


class Engine(Protocol):
    """Every command posted gets exactly one reply, and every accepted request one end, also if the engine dies."""

    failure: str | None  # why it died, once it has

    def start(self) -> None:
        """Return when kernel and executor are built; raise what building them raised."""

    def post(self, command: Command) -> None:
        """Thread-safe and never waits for a step. A dead or stopped engine answers Unavailable."""

    def stop(self, drain: bool) -> None:
        """Return at once. With `drain` what was accepted is finished first; without, it fails now. May be repeated."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the engine's end (seconds); False when it still runs."""


class ThreadEngine:
    """An engine on a thread of its own; `build` runs there, `deliver` is called from there."""

    def __init__(
        self, build: Build, deliver: Callable[[Batch], None], clock: Callable[[], Nanoseconds] = time.monotonic_ns
    ) -> None:
        self.failure: str | None = None
        self._build = build
        self._clock = clock
        self._inbox = Inbox()
        self._ledger = Ledger(deliver)
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.result()

    def post(self, command: Command) -> None:
        if self._ledger.take(command.ticket):
            self._inbox.put(command)

    def stop(self, drain: bool) -> None:
        self._inbox.put(Stop(drain))

    def join(self, timeout: float | None = None) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            kernel, executor = self._build()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ledger.open(kernel.stats(requests=False))
        self._ready.set_result(None)
        try:
            Loop(kernel, executor, self._inbox, self._ledger.pass_on, self._clock).run()
        except Exception as error:
            log.critical("the engine died", exc_info=error)
            self.failure = death(error)
        self._ledger.close(self.failure or STOPPED, self._clock())
