"""The feed against a real broker and a real database."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import aiomqtt
import msgspec
import pytest

from llmos_top.feed import FIRST_DELAY_S, LAST_DELAY_S, Feed, backoff, decode, newest_stored
from llmos_top.messages import (
    BrokerDown,
    BrokerUp,
    EventArrived,
    FrameArrived,
    FrameStored,
    Message,
    StatusArrived,
    Unreadable,
)
from llmosd.application.endpoint import Endpoint
from llmosd.application.topics import FRAME
from llmosd.wire import Frame
from tests.tui.conftest import LocalBroker, speaking
from tests.tui.frames import frame


@asynccontextmanager
async def following(feed: Feed) -> AsyncIterator[list[Message]]:
    got: list[Message] = []
    task = asyncio.create_task(feed.follow(got.append))
    yield got
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  messages come when they come
            await asyncio.sleep(0.02)


def of(kind: type, got: list[Message]) -> list:
    return [message for message in got if isinstance(message, kind)]


def store(path: Path, *frames: Frame) -> None:
    """The one table the feed reads, as the daemon's schema has it."""
    schema = (Path(__file__).parents[2] / "migrations" / "0001_initial.sql").read_text()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(schema)
        for each in frames:
            connection.execute(
                "INSERT INTO frames (ts, seq, running, waiting, payload) VALUES (?, ?, 0, 0, ?)",
                (int(each.at * 1000), each.seq, msgspec.json.encode(each).decode()),
            )


async def test_everything_a_daemon_says_arrives(broker: LocalBroker, node: str) -> None:
    async with following(Feed(broker.endpoint, node)) as got:
        await until(lambda: bool(of(BrokerUp, got)))
        async with speaking(broker, node) as daemon:
            await daemon.status()
            await daemon.frame(1)
            await daemon.event(1, "hello")
            await until(lambda: len(got) == 4)
    assert got[0] == BrokerUp()
    assert of(StatusArrived, got)[0].status.node == node
    arrived = of(FrameArrived, got)[0]
    assert (arrived.frame.seq, arrived.retained) == (1, False)
    assert msgspec.json.decode(arrived.raw, type=Frame) == arrived.frame
    assert of(EventArrived, got)[0].event.text == "hello"


async def test_what_was_said_before_is_marked_as_retained(broker: LocalBroker, node: str) -> None:
    async with speaking(broker, node) as daemon:
        await daemon.frame(5)
        async with following(Feed(broker.endpoint, node)) as got:
            await until(lambda: bool(of(FrameArrived, got)))
            await daemon.frame(6)
            await until(lambda: len(of(FrameArrived, got)) == 2)
    assert [(m.frame.seq, m.retained) for m in of(FrameArrived, got)] == [(5, True), (6, False)]


async def test_without_a_node_every_node_is_heard(broker: LocalBroker, node: str) -> None:
    async with following(Feed(broker.endpoint)) as got:
        await until(lambda: bool(of(BrokerUp, got)))
        for name in (f"{node}-a", f"{node}-b"):
            async with speaking(broker, name) as daemon:
                await daemon.frame(1)
        await until(lambda: {f"{node}-a", f"{node}-b"} <= {m.frame.node for m in of(FrameArrived, got)})


async def test_a_broker_that_comes_back_is_found_again(own_broker: LocalBroker, node: str) -> None:
    async with following(Feed(own_broker.endpoint, node)) as got:
        await until(lambda: bool(of(BrokerUp, got)))
        own_broker.stop()
        await until(lambda: bool(of(BrokerDown, got)))
        own_broker.start()
        await until(lambda: len(of(BrokerUp, got)) == 2)
        async with speaking(own_broker, node) as daemon:
            await daemon.frame(9)
            await until(lambda: bool(of(FrameArrived, got)))
    assert all(message.reason for message in of(BrokerDown, got))


async def test_a_broker_that_came_up_elsewhere_is_found(broker: LocalBroker) -> None:
    places = [Endpoint("127.0.0.1", 1), broker.endpoint]
    feed = Feed(places[0], locate=lambda: places.pop(0) if len(places) > 1 else places[0])
    async with following(feed) as got:
        await until(lambda: bool(of(BrokerUp, got)))
    assert of(BrokerDown, got) and feed.where.broker == broker.url


async def test_a_person_can_ask_for_a_retry(own_broker: LocalBroker) -> None:
    own_broker.stop()
    feed = Feed(own_broker.endpoint)
    async with following(feed) as got:
        await until(lambda: any(m.retry_in_s > 3 for m in of(BrokerDown, got)))
        own_broker.start()
        waited = len(got)
        feed.retry_now()
        await until(lambda: bool(of(BrokerUp, got)))
    assert got.index(BrokerUp()) <= waited + 1  # at most one more second of waiting was announced


async def test_the_database_is_read_at_the_start_and_while_the_broker_is_away(tmp_path: Path) -> None:
    now = time.time()
    path = tmp_path / "llmos.db"
    store(path, *(replace(frame(seq), at=now - 10 + seq) for seq in range(1, 6)))
    nobody = Endpoint("127.0.0.1", 1)
    async with following(Feed(nobody, database=path)) as got:
        await until(lambda: bool(of(BrokerDown, got)))
        await until(lambda: len(of(FrameStored, got)) > 5)
    stored = of(FrameStored, got)
    assert [m.frame.seq for m in stored[:6]] == [1, 2, 3, 4, 5, 5]
    assert 4.5 < stored[4].age_s < 30
    assert of(BrokerDown, got)[0].reason == "connection refused"


def test_an_unusable_database_is_no_frame(tmp_path: Path) -> None:
    assert newest_stored(tmp_path / "none.db", 1) == []
    (tmp_path / "garbage.db").write_bytes(b"not a database at all" * 100)
    assert newest_stored(tmp_path / "garbage.db", 1) == []
    store(tmp_path / "empty.db")
    assert newest_stored(tmp_path / "empty.db", 1) == []


async def test_a_stranger_on_our_topic_is_reported_not_fatal(broker: LocalBroker, node: str) -> None:
    async with following(Feed(broker.endpoint, node)) as got, aiomqtt.Client("127.0.0.1", broker.port) as stranger:
        await until(lambda: bool(of(BrokerUp, got)))
        await stranger.publish(FRAME.on(node), b"\xff\x00 not json")
        await until(lambda: bool(of(Unreadable, got)))
        async with speaking(broker, node) as daemon:
            await daemon.frame(1)
            await until(lambda: bool(of(FrameArrived, got)))


@pytest.mark.parametrize("payload", [b'{"node": "\xff"}', b'{"x": ' + b"[" * 100_000, b"", b"[]", b"\x00"])
def test_a_foreign_message_is_unreadable_and_no_error(payload: bytes) -> None:
    for topic in ("llmos/n/frame", "llmos/n/status", "llmos/n/event"):
        assert isinstance(decode(topic, payload, retained=False), Unreadable)


def test_a_message_of_a_later_version_that_does_not_decode_says_so() -> None:
    message = decode("llmos/n/frame", b'{"version": 9, "seq": "nine"}', retained=False)
    assert isinstance(message, Unreadable) and "SCHEMA 9>1" in message.why
    message = decode("llmos/n/frame", b'{"version": 1, "seq": "nine"}', retained=False)
    assert isinstance(message, Unreadable) and "SCHEMA" not in message.why


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    raw = msgspec.json.encode(frame(1)).replace(b'{"node"', b'{"invented_later": [1], "node"', 1)
    assert isinstance(decode("llmos/n/frame", raw, retained=False), FrameArrived)


def test_waits_grow_to_their_limit_and_differ() -> None:
    delays = list(islice(backoff(), 12))
    assert 0.75 * FIRST_DELAY_S <= delays[0] <= 1.25 * FIRST_DELAY_S
    assert all(delay <= 1.25 * LAST_DELAY_S for delay in delays) and min(delays[-3:]) >= 0.75 * LAST_DELAY_S
    assert len(set(delays)) == len(delays)
