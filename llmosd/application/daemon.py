"""The composition root: config → hardware → runtime → kernel → engine → service → HTTP, store and bus.

Everything is built here, one TaskGroup supervises it, and it ends here: the first SIGTERM or SIGINT drains, a second
one stops at once; a task that fails ends the daemon with its error on record.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from starlette.applications import Starlette

from llmosd.application import instance, keys
from llmosd.application.access import Access
from llmosd.application.assembly import Assembly
from llmosd.application.batch.batches import Batches
from llmosd.application.batch.files import DAY_S, Files
from llmosd.application.batch.ledger import Ledger
from llmosd.application.blueprint import Blueprint
from llmosd.application.broker import ensure_broker
from llmosd.application.bus import Bus
from llmosd.application.command_topic import CommandTopic
from llmosd.application.commands import Commands
from llmosd.application.engine import ThreadEngine
from llmosd.application.eventlog import EventLog
from llmosd.application.flow import BackPressure
from llmosd.application.frames import FrameBuilder, Identity
from llmosd.application.gauges import offer_metrics
from llmosd.application.hibernation import Hibernation
from llmosd.application.http.app import create_app
from llmosd.application.http.generation import Backing
from llmosd.application.http.line_post import LinePost
from llmosd.application.http.metrics import Metrics
from llmosd.application.instance import Record
from llmosd.application.lag import LoopLag
from llmosd.application.models import Models
from llmosd.application.outbox import Outbox
from llmosd.application.server import HttpServer, is_exposed, listen, url
from llmosd.application.service import Phase, Service
from llmosd.application.signals import StopSignals
from llmosd.application.store import Store
from llmosd.application.telemetry import Telemetry
from llmosd.config import Config
from llmosd.errors import LlmosError
from llmosd.hardware.probes import HostProbe
from llmosd.runtime.installed import InstalledModel, find
from llmosd.system.limits import Limits
from llmosd.wire import Status

log = logging.getLogger(__name__)

DRAIN_S = 30.0

OnServing = Callable[[str], None]


def run(config: Config, on_serving: OnServing | None = None) -> int:
    """Be the daemon until a signal ends it. `on_serving` runs on a thread, with the address, once requests are taken.

    Raises ConfigError where another daemon has this home or the port is taken, LlmosError for what ended it.
    """
    _log_to_stderr(config.log_level.upper())
    with instance.claim(config.home):
        daemon = Daemon(config, on_serving)
        try:
            asyncio.run(daemon.live())
        except Exception as exc:
            error = _cause(exc)
            daemon.note_state("failed", error.message)
            raise error from exc
        daemon.note_state("stopped")
    return 0


class Daemon:
    """One life of a daemon: build, serve, drain. Its state is on record at every moment."""

    def __init__(self, config: Config, on_serving: OnServing | None) -> None:
        self._config = config
        self._on_serving = on_serving
        self._record = Record(
            "starting",
            os.getpid(),
            db=str(config.database),
            model=config.model,
            log=str(config.log_file),
            started_at=time.time(),
        )

    def note_state(self, state: str, error: str = "") -> None:
        self._record = replace(self._record, state=state, error=error)
        instance.write(self._config.home, self._record)

    async def live(self) -> None:
        config, signals = self._config, StopSignals()
        with listen(config.host, config.port) as listener:
            self._record = replace(self._record, http=url(config.host, listener.getsockname()[1]))
            self.note_state("starting")
            self._access = Access(config.home, readonly=config.readonly, exposed=is_exposed(listener))
            self._config = config = replace(config, quotas=keys.quotas(self._access.first, config.quotas))
            model = find(config.home, config.model)
            pinned = [find(config.home, name) for name in config.pinned_models if name != model.id]
            broker = await ensure_broker(config)  # before what takes long: a broker outlives its daemon by 5 s only
            log.info("broker: %s", broker)
            self._record = replace(self._record, mqtt=broker.url, mqtt5=broker.url_v5)
            try:
                await self._live_with(model, pinned, listener, signals)
            except BaseException:
                if self._record.state == "starting":
                    broker.dismiss()
                raise

    async def _live_with(
        self, model: InstalledModel, pinned: list[InstalledModel], listener: socket.socket, signals: StopSignals
    ) -> None:
        config = self._config
        assembly = await asyncio.to_thread(Assembly.draw, config, model, pinned, _log_progress)
        plan = assembly.first
        self._record = replace(self._record, backend=plan.backend, device=plan.device)
        store = await Store.open(config.database)
        try:
            await self._build(assembly, store)
            await self._batches.open()
            await self._serve(listener, signals)
        finally:
            await store.close()

    async def _build(self, assembly: Assembly, store: Store) -> None:
        """All parts but the tasks that run them. Returns when the engine is ready."""
        config, record, plan = self._config, self._record, assembly.first
        self._outbox = Outbox(lambda batch: self._service.dispatch(batch))
        self._engine = ThreadEngine(assembly, self._outbox.put)
        back_pressure = BackPressure(config.stream_buffer, config.stream_timeout)
        self._service = Service(self._engine, on_accept=store.record_accepted, back_pressure=back_pressure)
        self._metrics = Metrics(config.model)
        self._events = EventLog(config.node)
        status = Status(config.node, "online", time.time(), os.getpid(), record.http, record.started_at)
        commands = CommandTopic(config.node, Commands(self._service), self._access)
        self._bus = Bus(partial(ensure_broker, config), status, self._events, commands.answer)
        self._lag = LoopLag()
        self._telemetry = Telemetry(
            self._service, FrameBuilder(self._identity(plan)), self._bus, store, self._events, self._lag, HostProbe()
        )
        self._service.subscribe(self._metrics.observe)
        models = Models(self._service, *assembly.served, open=assembly.open, installed=assembly.installed)
        self._hibernation = Hibernation(config.hibernated, self._service, models, self._events, store.record_restored)
        backing = Backing(self._service, self._hibernation, models, config.log_prompts)
        self._batches = self._make_batches(backing, store, plan.limits)
        self._server = HttpServer(self._app(backing))
        offer_metrics(self._metrics, self._lag, self._bus, store, self._service)
        await asyncio.to_thread(self._engine.start)
        gc.collect()
        gc.freeze()  # all this stays: to look through it for garbage takes longer than a step
        log.info("%s on %s, %s: %s; %s", config.model, plan.device, plan.backend, plan.why, plan.limits)

    def _make_batches(self, backing: Backing, store: Store, limits: Limits) -> Batches:
        """Their lines may run in all slots when nobody else is there, and never fill more than half of the queue."""
        config, kept_s = self._config, self._config.file_retention * DAY_S
        ledger = Ledger(store, config.database)
        places = max(1, min(limits.slots, limits.queue_limit // 2))
        files, post = Files(config.files, ledger, kept_s), LinePost(backing)
        return Batches(files, ledger, self._service, post, self._events, places=places, kept_s=kept_s)

    def _app(self, backing: Backing) -> Starlette:
        return create_app(
            backing,
            self._batches,
            access=self._access,
            host=self._config.host,
            registry=self._metrics.registry,
            status=lambda: asdict(self._record),
            observe=self._metrics.count_http,
        )

    def _identity(self, plan: Blueprint) -> Identity:
        return Identity(
            node=self._config.node,
            started=time.monotonic_ns(),
            http=self._record.http,
            model=plan.model.id,
            backend=plan.backend,
            threads=plan.threads,
            bytes_per_page=plan.bytes_per_page,
            amdahl=plan.amdahl,
        )

    # ------------------------------------------------------------ serving and ending

    async def _serve(self, listener: socket.socket, signals: StopSignals) -> None:
        try:
            async with asyncio.TaskGroup() as group:

                def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                    return group.create_task(work, name=name)

                engine = start("engine", self._watch_engine())
                http = start("http", self._server.run_on(listener))
                bus, lag = start("bus", self._bus.run()), start("lag", self._lag.run())
                telemetry = start("telemetry", self._telemetry.run())
                answers = start("answers", self._hibernation.run())
                await self._server.ready.wait()
                await self._hibernation.restore()
                self._begin(start)
                batches = start("batches", self._batches.run())
                await signals.asked.wait()
                await self._drain(signals)
                telemetry.cancel()
                self._service.stop()
                await engine
                await self._hibernation.settled()
                await self._batches.settled()
                self._server.close()
                await http
                for task in (lag, bus, answers, batches):
                    task.cancel()
        finally:
            self._service.stop()

    def _begin(self, start: Callable[[str, Coroutine[Any, Any, None]], object]) -> None:
        """From now on requests are taken, and the record says so."""
        self._service.phase = Phase.SERVING
        self.note_state("serving")
        self._events.note("info", "daemon.serving", f"serving {self._config.model} at {self._record.http}")
        log.info("serving at %s", self._record.http)
        if self._on_serving:
            start("greeting", self._greet(self._on_serving))

    async def _greet(self, on_serving: OnServing) -> None:
        """What goes wrong with it ends the daemon, unless that is ending anyway."""
        try:
            await asyncio.to_thread(on_serving, self._record.http)
        except LlmosError as error:
            if self._service.phase is Phase.SERVING:
                raise
            log.info("the first answer was given up: %s", error)

    async def _drain(self, signals: StopSignals) -> None:
        """Take no more requests and let the running ones end, for at most DRAIN_S or until a second signal."""
        self._service.phase = Phase.DRAINING
        self.note_state("draining")
        self._events.note("info", "daemon.draining", "no new requests are taken")
        self._bus.set_state("draining")
        log.info("draining; a second signal stops at once")
        waits = [asyncio.create_task(event) for event in (self._service.roster.idle(), _set(signals.forced))]
        _, pending = await asyncio.wait(waits, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        if not signals.forced.is_set():
            await self._hibernation.keep_suspended()

    async def _watch_engine(self) -> None:
        """Returns when the engine was stopped; raises what it died of, once its clients have been told."""
        await asyncio.to_thread(self._engine.join)
        self._outbox.drain()
        if self._engine.failure:
            self._events.note("error", "engine.died", self._engine.failure)
            self._server.close()
            await self._server.closed.wait()
            raise LlmosError(self._engine.failure)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level)
    for chatty in ("httpx", "uvicorn.error"):  # a line a request, and what we say ourselves
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _log_progress(stage: str, done: int, total: int) -> None:
    if done >= total:
        log.info("model: %s done", stage)


def _cause(error: BaseException) -> LlmosError:
    """The first reported error in a group of tasks' errors; a defect is logged whole and reported in brief."""
    leaves = [error]
    while any(isinstance(leaf, BaseExceptionGroup) for leaf in leaves):
        leaves = [inner for leaf in leaves for inner in getattr(leaf, "exceptions", (leaf,))]
    for leaf in leaves:
        if isinstance(leaf, LlmosError):
            return leaf
    log.critical("the daemon failed", exc_info=error)
    return LlmosError(f"internal error: {type(leaves[0]).__name__}: {leaves[0]}")
