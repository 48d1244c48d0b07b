"""Server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

KEEP_ALIVE_S = 5.0
DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must pass each event on at once


_SEPARATORS = [(separator.encode(), b"\\u%04x" % ord(separator)) for separator in "\x85\u2028\u2029"]


def sse(*payloads: Any) -> bytes:
    """One event each."""
    return b"".join(b"data: " + _json(payload) + b"\n\n" for payload in payloads)


class TextEvents:
    """The events of one stream that differ in their choice's index and text only: the rest is encoded once.

    `make` gives the payload for an index and a text that stands in it once.
    """

    def __init__(self, make: Callable[[int, str], Any]) -> None:
        self._make = make
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # index → what stands before and behind the text

    def event(self, index: int, text: str) -> bytes:
        before, behind = self._frames.get(index) or self._frame(index)
        return before + _json(text) + behind

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        before, behind = sse(self._make(index, _HOLE)).split(_json(_HOLE))
        return self._frames.setdefault(index, (before, behind))


_HOLE = "\0a text\0"  # no name or id holds a NUL


def _json(payload: Any) -> bytes:
    """Unicode's line separators are escaped: some clients split lines at them, inside a text too."""
    data = msgspec.json.encode(payload)
    if not data.isascii():
        for separator, escaped in _SEPARATORS:
            data = data.replace(separator, escaped)
    return data


class EventStream(Response):
    """Sends `events` as they come, a comment where none came for `keep_alive_s`; calls `gone` if the client leaves.

    A client that reads slowly holds up only its own events: the server's write buffer fills, and `events` waits. What
    the request says meanwhile is kept by its stream, which lets it pause before that is much.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], gone: Callable[[], None], keep_alive_s: float = KEEP_ALIVE_S
    ) -> None:
        super().__init__(None, 200, _HEADERS, "text/event-stream")
        del self.headers["content-length"]
        self._events = events
        self._gone = gone
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        keep_alive = _KeepAlive(send, self._keep_alive_s)
        async with (
            on_disconnect(receive, self._gone),
            _running(keep_alive.run(), "keep-alive"),
            aclosing(self._events) as events,
        ):
            async for event in events:
                if event:  # an empty body would be no news to the client
                    keep_alive.sent = True
                    await send(_body(event))
        await send(_body(b"", more=False))


class _KeepAlive:
    """Tells proxies and clients that a quiet stream is alive: queued, in a long prefill, or preempted."""

    def __init__(self, send: Send, period_s: float) -> None:
        self._send = send
        self._period_s = period_s
        self.sent = False

    async def run(self) -> None:
        while True:
            self.sent = False
            await asyncio.sleep(self._period_s)
            if not self.sent:
                await self._send(_body(b": keep-alive\n\n"))


@asynccontextmanager
async def on_disconnect(receive: Receive, gone: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `gone` if the client disconnects inside the block. The body must have been read."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone()

    async with _running(watch(), "disconnect watch"):
        yield


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
