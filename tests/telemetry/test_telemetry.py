"""The whole way: a real kernel, engine and service, a real broker and database; only the arithmetic is a formula."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from llmosd.application.broker import MOSQUITTO, ensure_broker
from llmosd.application.bus import Bus
from llmosd.application.endpoint import Answer, probe
from llmosd.application.engine import Batch, ThreadEngine
from llmosd.application.eventlog import EventLog
from llmosd.application.frames import FrameBuilder, Identity
from llmosd.application.lag import LoopLag
from llmosd.application.query import canned
from llmosd.application.service import Phase, Service
from llmosd.application.store import Store
from llmosd.application.stream import together
from llmosd.application.telemetry import Telemetry
from llmosd.config import Config
from llmosd.hardware.probes import HostProbe
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import Fcfs
from llmosd.types import RequestSpec, Sampling
from llmosd.wire import EventMessage, Status
from tests.telemetry.conftest import subscriber, until
from tests.telemetry.test_broker import free_port

LIMITS = Limits(slots=4, token_budget=64, queue_limit=100, context=512, page_tokens=16, pages=256)
COST = CostModel(step=1_000_000, prefill=10_000, decode=100_000, context=0)


@asynccontextmanager
async def daemon(config: Config) -> AsyncIterator[tuple[Service, Telemetry, Bus]]:
    """The parts of a daemon that have to do with telemetry, joined as the daemon joins them."""
    clock, loop = ManualClock(), asyncio.get_running_loop()
    executor = CostModelExecutor(COST, lambda _start: 20, clock)
    store = await Store.open(config.database)

    def deliver(batch: Batch) -> None:
        loop.call_soon_threadsafe(service.dispatch, batch)

    engine = ThreadEngine(
        lambda: (Kernels(Kernel(LIMITS, Fcfs(), model="formula")), executor), deliver, lambda: clock.now
    )
    service = Service(engine, on_accept=store.record_accepted, clock=lambda: clock.now)
    events = EventLog(config.node)
    bus = Bus(partial(ensure_broker, config), Status(config.node, "online", time.time(), os.getpid()), events)
    frames = FrameBuilder(Identity(config.node, started=clock.now, model="formula"))
    telemetry = Telemetry(service, frames, bus, store, events, LoopLag(), HostProbe())
    engine.start()
    service.phase = Phase.SERVING
    tasks = [asyncio.create_task(work) for work in (bus.run(), telemetry.run())]
    try:
        await until(lambda: bus.connected)
        yield service, telemetry, bus
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        engine.stop(drain=False)
        await asyncio.to_thread(engine.join, 60)
        await store.close()


async def complete(service: Service, id: str) -> None:
    spec = RequestSpec(
        id, "formula", range(30), Sampling(max_tokens=50), user="alice", arrived=service.clock(), created_at=time.time()
    )
    async for _ in together([await service.submit(spec)]):
        pass


async def test_what_requests_do_reaches_subscribers_and_the_database_in_agreement(config: Config) -> None:
    async with daemon(config) as (service, telemetry, bus):
        assert bus.broker
        async with subscriber(bus.broker.endpoint.port) as got:
            await asyncio.gather(*(complete(service, f"r{number}") for number in range(12)))
            seen = telemetry.frame.seq if telemetry.frame else 0
            await until(lambda: any(payload["seq"] > seen + 1 for topic, payload, _ in got if topic.endswith("frame")))
            await until(lambda: any(payload.get("kind") == "request.accepted" for _, payload, _ in got))
        frame = telemetry.frame
        assert frame and (frame.queue.finished_total, frame.throughput.generated_tokens_total) == (12, 240)
        assert (frame.latency.e2e.count, frame.latency.itl.count) == (12, 12 * 19)
        assert (frame.queueing.completions, frame.queueing.little) == (12, pytest.approx(1))
        assert frame.queueing.mm1.rho is not None and frame.state == "serving" and frame.step.total > 0
    table = canned(config.database, "requests")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert {row["id"] for row in rows} == {f"r{number}" for number in range(12)}
    assert {(row["state"], row["user"], row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {
        ("finished", "alice", 30, 20)
    }
    for row in rows:
        parts = sum(row[f"{part}_ms"] for part in ("queued", "prefill", "decode", "preempted", "other"))
        assert parts == pytest.approx(row["total_ms"]) and row["ttft_ms"] <= row["total_ms"]
    mean = sum(row["total_ms"] for row in rows) / len(rows)
    assert frame.latency.e2e.mean_ms == pytest.approx(mean)
    kinds = [row[2] for row in canned(config.database, "events").rows]
    assert kinds.count("request.accepted") == kinds.count("request.finished") == 12


def test_events_say_why_a_request_was_cancelled() -> None:
    kernel, log, said = Kernel(LIMITS, Fcfs()), EventLog("test"), list[EventMessage]()
    log.attach(said.append)
    log.note_kernel(kernel.submit(RequestSpec("a", "formula", (1,), Sampling()), 0))
    log.note_kernel(kernel.cancel("a", "the client disconnected", 1))
    assert [event.kind for event in said] == ["request.accepted", "request.cancelled"]
    assert "the client disconnected" in said[-1].text


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The URL of a mosquitto that wants a password."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    port, passwords, settings = free_port(), tmp_path / "passwords", tmp_path / "m.conf"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "me", "p@ss"], check=True)
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n")
    with subprocess.Popen([MOSQUITTO, "-c", settings], stderr=subprocess.DEVNULL) as broker:
        yield f"mqtt://me:p%40ss@127.0.0.1:{port}"
        broker.terminate()


async def test_an_external_broker_with_a_password(config: Config, guarded: str) -> None:
    port = int(guarded.rsplit(":", 1)[1])
    await until_refused(port)
    async with daemon(replace(config, mqtt=guarded)) as (_, _, bus):
        assert bus.connected and bus.broker and "p@ss" not in str(bus.broker) + bus.broker.url


async def until_refused(port: int) -> None:
    async with asyncio.timeout(60):
        while await probe("127.0.0.1", port) is not Answer.REFUSED:  # noqa: ASYNC110  nothing to wait on
            await asyncio.sleep(0.05)
