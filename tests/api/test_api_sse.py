from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest
from starlette.types import Message

from llmosd.application.http.sse import EventStream, sse


class Connection:
    """Both ends of an ASGI connection, in memory."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.disconnected = asyncio.Event()
        self.news = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    async def receive(self) -> Message:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.writable.wait()
        if message["type"] == "http.response.body":
            self.sent.append(message["body"])
            self.news.set()

    async def sees(self, data: bytes, count: int = 1) -> None:
        while self.sent.count(data) < count:
            self.news.clear()
            await self.news.wait()


async def test_a_quiet_stream_is_kept_alive_and_a_busy_one_is_not() -> None:
    more = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await more.wait()
        yield b"b"

    connection = Connection()
    stream = EventStream(events(), lambda: None, keep_alive_s=0.01)
    task = asyncio.create_task(stream({}, connection.receive, connection.send))
    await connection.sees(b": keep-alive\n\n", 3)
    more.set()
    await task
    assert [data for data in connection.sent if not data.startswith(b":")] == [b"a", b"b", b""]


async def test_no_comment_without_need() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"a"

    connection = Connection()
    await EventStream(events(), lambda: None, keep_alive_s=60)({}, connection.receive, connection.send)
    assert connection.sent == [b"a", b""]


async def test_a_client_that_leaves_is_noticed_while_nothing_is_sent() -> None:
    gone = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        await gone.wait()
        yield b"over"

    connection = Connection()
    connection.disconnected.set()
    async with asyncio.timeout(60):
        await EventStream(events(), gone.set)({}, connection.receive, connection.send)
    assert gone.is_set()


async def test_a_slow_client_holds_up_its_own_events_only() -> None:
    made: list[int] = []

    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            made.append(number)
            yield b"x"

    connection = Connection()
    task = asyncio.create_task(EventStream(events(), lambda: None)({}, connection.receive, connection.send))
    connection.writable.clear()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(made) <= 1
    connection.writable.set()
    await task
    assert made == [0, 1, 2]


async def test_a_stopped_server_closes_the_events() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(3600)
        finally:
            closed.set()

    connection = Connection()
    task = asyncio.create_task(EventStream(events(), lambda: None)({}, connection.receive, connection.send))
    await connection.sees(b"x")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


def test_an_event_is_one_line_for_every_kind_of_splitter() -> None:
    text = "a\x85b\u2028c\u2029d\x0b\x0c\x1c\x1d\x1e\r\n\u00e5"
    lines = sse(text).decode().splitlines()
    assert len(lines) == 2, lines
    assert msgspec.json.decode(lines[0].removeprefix("data: ")) == text
