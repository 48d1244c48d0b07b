"""The bus against real brokers: retained state, death of the broker, gaps, rates, goodbye."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiomqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.application.broker import Broker, ensure_broker
from llmosd.application.bus import BACKOFF_MAX_S, Answer, Bus, backoff
from llmosd.application.eventlog import EventLog
from llmosd.application.ratelimit import BURST, PER_S, EventRate
from llmosd.config import Config
from llmosd.wire import CommandReply, EventMessage, Frame, Status
from tests.telemetry.conftest import kill, subscriber, until


@asynccontextmanager
async def running(
    config: Config, mosquitto: str | None, answer: Answer | None = None
) -> AsyncIterator[tuple[Bus, EventLog, list[EventMessage]]]:
    """A connected bus, the log that feeds it, and all that was logged."""

    async def ensure() -> Broker:
        return await ensure_broker(config, mosquitto=mosquitto)

    log, logged = EventLog("test"), list[EventMessage]()
    bus = Bus(ensure, Status("test", "online", time.time(), pid=7), log, answer)
    log.attach(bus.publish_event)
    log.attach(logged.append)
    task = asyncio.create_task(bus.run())
    try:
        await until(lambda: bus.connected)
        yield bus, log, logged
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def port(bus: Bus) -> int:
    assert bus.broker
    return bus.broker.endpoint.port


def states(got: list[Any]) -> list[str]:
    return [payload["state"] for topic, payload, _ in got if topic == "llmos/test/status"]


async def test_who_comes_late_reads_status_and_last_frame_at_once(config: Config, mosquitto: str | None) -> None:
    async with running(config, mosquitto) as (bus, _, _):
        async with subscriber(port(bus)) as early:
            for seq in (1, 2):
                bus.publish_frame(Frame("test", seq, 0.0))
                await until(lambda seq=seq: any(payload.get("seq") == seq for _, payload, _ in early))
        async with subscriber(port(bus)) as got:
            await until(lambda: len(got) == 2)
            assert {topic: retained for topic, _, retained in got} == {
                "llmos/test/frame": True,
                "llmos/test/status": True,
            }
            assert states(got) == ["online"]
            assert [payload["seq"] for topic, payload, _ in got if topic.endswith("frame")] == [2]
            bus.set_state("draining")
            await until(lambda: states(got) == ["online", "draining"])
    assert bus.gaps == 0


async def test_cancelling_the_bus_says_offline(config: Config, mosquitto: str | None) -> None:
    async with running(config, mosquitto) as (bus, _, _):
        listening = subscriber(port(bus))
        got = await listening.__aenter__()
    await until(lambda: states(got)[-1:] == ["offline"])
    await listening.__aexit__(None, None, None)


async def test_the_broker_dies_and_telemetry_comes_back_with_the_gap_marked(
    config: Config, mosquitto: str | None
) -> None:
    async with running(config, mosquitto) as (bus, log, logged):
        assert bus.broker
        kill(bus.broker)
        while bus.connected:
            bus.publish_frame(Frame("test", 1, 0.0))
            await asyncio.sleep(0.05)
        log.note("info", "test", "nobody hears this")
        bus.publish_frame(Frame("test", 2, 0.0))
        missed = bus.gaps
        assert missed >= 2
        await until(lambda: bus.connected)
        async with subscriber(port(bus)) as got:
            bus.publish_frame(Frame("test", 3, 0.0))
            await until(lambda: any(payload.get("seq") == 3 for _, payload, _ in got))
        assert states(got) == ["online"]  # a new broker knows it again
        notes = [event for event in logged if event.kind == "telemetry.gap"]
        assert [event.severity for event in notes] == ["warning"] and notes[0].text.startswith(f"{missed} messages")


async def test_a_flood_of_events_is_thinned_and_the_rest_counted(config: Config, mosquitto: str | None) -> None:
    async with running(config, mosquitto) as (bus, log, logged), subscriber(port(bus)) as got:
        for number in range(100):
            log.note("info", "flood", str(number))
        log.note("error", "test", "an error still gets through")
        await until(lambda: any(payload.get("kind") == "events.left_out" for _, payload, _ in got))
        events = [payload for topic, payload, _ in got if topic == "llmos/test/event"]
        assert BURST / 2 <= len(events) < 50
        sent = sum(event["kind"] == "flood" for event in events)
        marked = next(event["text"] for event in events if event["kind"] == "events.left_out")
        assert marked.startswith(f"{100 - sent} events left out")
        assert "error" in {event["severity"] for event in events}
    assert sum(event.kind == "flood" for event in logged) == 100


async def test_publishing_never_waits_for_the_broker(config: Config) -> None:
    """Without any broker: everything returns at once and is counted."""
    nowhere = Config(home=config.home, mqtt="mqtt://127.0.0.1:9", node="test")
    log = EventLog("test")
    bus = Bus(lambda: ensure_broker(nowhere), Status("test", "online", 0.0), log)
    log.attach(bus.publish_event)
    task = asyncio.create_task(bus.run())
    for number in range(1000):
        bus.publish_frame(Frame("test", number, 0.0))
        log.note("info", "test", "x")
    await asyncio.sleep(0.3)
    before = bus.gaps
    bus.publish_frame(Frame("test", 1, 0.0))
    assert before >= 999 and bus.gaps == before + 1 and not bus.connected
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1))
def test_back_off_grows_from_half_a_second_to_half_a_minute(attempt: int, jitter: float) -> None:
    assert 0.25 <= backoff(attempt, jitter) <= BACKOFF_MAX_S
    assert backoff(attempt, jitter) <= backoff(attempt + 1, jitter)
    assert backoff(1, 0.0) == 0.5 and backoff(100, 0.0) == BACKOFF_MAX_S


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["info", "warning", "error"])), max_size=200))
def test_no_more_events_pass_than_the_rate_allows_and_info_leaves_room(events: list[tuple[float, str]]) -> None:
    rate, now, passed = EventRate(0.0), 0.0, 0
    for pause, severity in events:
        now += pause
        passed += rate.allow(severity, now)
        assert passed <= BURST + now * PER_S
    while rate.allow("info", now):
        pass
    assert rate.allow("error", now)


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "\u202eabc", "a\r\nb", "\ud800", "\x00"])
def test_hostile_text_leaves_the_log_escaped(text: str) -> None:
    message = EventLog("n").message("info", "test", text, request=text)
    assert message.text.isprintable() and message.request and message.request.isprintable()


async def test_a_stop_that_comes_with_an_acknowledgement_is_not_lost(
    config: Config, mosquitto: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in one turn of the event loop, as under heavy load: `asyncio.wait_for` may then drop the cancellation."""
    acknowledge, stop = aiomqtt.Client._on_publish, list[asyncio.Task[None]]()

    def acknowledge_and_stop(client: aiomqtt.Client, *rest: Any) -> None:
        acknowledge(client, *rest)
        if stop:
            stop.pop().cancel()

    monkeypatch.setattr(aiomqtt.Client, "_on_publish", acknowledge_and_stop)
    before = asyncio.all_tasks()
    async with running(config, mosquitto) as (bus, log, _), subscriber(port(bus)) as got:
        (task,) = [task for task in asyncio.all_tasks() - before if "Bus.run" in repr(task)]
        stop.append(task)
        log.note("info", "test", "the last event")
        await asyncio.wait({task}, timeout=60)
        assert task.cancelled()
        await until(lambda: states(got)[-1:] == ["offline"])


async def test_commands_are_answered_and_who_sent_one_from_outside_is_not_taken_for_this_machine(
    config: Config, mosquitto: str | None
) -> None:
    asked: list[tuple[bytes, bool]] = []

    async def answer(payload: bytes, local: bool) -> CommandReply:
        asked.append((payload, local))
        return CommandReply("test", 0.0, payload.decode())

    def replies(got: list[Any]) -> list[str]:
        return [payload["ticket"] for topic, payload, _ in got if topic == "llmos/test/reply"]

    async with running(config, mosquitto, answer) as (bus, _, _), subscriber(port(bus)) as got:
        async with aiomqtt.Client("127.0.0.1", port(bus)) as client:
            await client.publish("llmos/else/command", b"1", 1)
            await client.publish("llmos/test/command", b"2", 1)
            await client.publish("llmos/test/command", b"3", 1, retain=True)  # for who is there, one as any other
        await until(lambda: sorted(replies(got)) == ["2", "3"])
        assert asked == [(b"2", True), (b"3", True)]
        outside = Config(home=config.home, mqtt=f"mqtt://127.0.0.1:{port(bus)}", node="test")
    asked.clear()
    async with running(outside, None, answer) as (bus, _, _), aiomqtt.Client("127.0.0.1", port(bus)) as client:
        await client.publish("llmos/test/command", b"4", 1)
        await until(lambda: bool(asked))
    assert asked == [(b"4", False)], "what is retained is none for now"
