"""Where messages come from: the broker, and while it is away, the daemon's database. The only I/O besides actions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt
import msgspec

from llmos_top.headline import Where
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
from llmos_top.state import HISTORY
from llmosd.application import query
from llmosd.application.endpoint import Endpoint
from llmosd.application.topics import FRAME, STATUS, TELEMETRY
from llmosd.errors import LlmosError
from llmosd.wire import UNREADABLE, VERSION, EventMessage, Frame, Status

FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
CONNECT_S = 5.0
KEEPALIVE_S = 10  # a half-open connection is noticed after one and a half of these
POLL_S = 1.0

Deliver = Callable[[Message], None]


@dataclass(slots=True)
class Feed:
    """Follows one broker for ever. `node` None takes every node's messages; `database` None means there is none.

    `locate` is asked before each attempt, as a daemon started later may have its broker elsewhere.
    """

    endpoint: Endpoint
    node: str | None = None
    database: Path | None = None
    locate: Callable[[], Endpoint] | None = None
    retry: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def where(self) -> Where:
        return Where(str(self.endpoint), str(self.database or ""))

    async def follow(self, deliver: Deliver) -> None:
        """Connect, subscribe, deliver; when the connection fails, wait longer each time and start afresh."""
        await self.read_database(deliver, HISTORY)
        delays = backoff()
        while True:
            self.endpoint = self.locate() if self.locate else self.endpoint
            try:
                async with self._client() as client:
                    for topic in TELEMETRY:
                        await client.subscribe(topic.on(self.node or "+"), qos=topic.qos)
                    deliver(BrokerUp())
                    delays = backoff()
                    async for message in client.messages:
                        deliver(decode(message.topic.value, _payload(message.payload), retained=message.retain))
            except aiomqtt.MqttError as exc:
                await self._wait(next(delays), _reason(exc), deliver)

    def retry_now(self) -> None:
        self.retry.set()

    def _client(self) -> aiomqtt.Client:
        """A new one for each attempt: aiomqtt's keep their state after a drop and would report a false success."""
        return aiomqtt.Client(
            self.endpoint.host,
            self.endpoint.port,
            username=self.endpoint.username,
            password=self.endpoint.password,
            tls_params=aiomqtt.TLSParameters() if self.endpoint.tls else None,
            timeout=CONNECT_S,
            keepalive=KEEPALIVE_S,
            max_queued_incoming_messages=1000,
        )

    async def _wait(self, delay: float, reason: str, deliver: Deliver) -> None:
        """Until `delay` is over or somebody asks for a retry; meanwhile the database is read once a second."""
        end = time.monotonic() + delay
        self.retry.clear()
        while (left := end - time.monotonic()) > 0:
            deliver(BrokerDown(reason, left))
            await self.read_database(deliver)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(POLL_S, left)):
                    await self.retry.wait()
                    return

    async def read_database(self, deliver: Deliver, count: int = 1) -> None:
        """Deliver the `count` newest stored Frames, oldest first, if there is a database with any."""
        if self.database is not None:
            for stored in await asyncio.to_thread(newest_stored, self.database, count):
                deliver(stored)


def backoff() -> Iterator[float]:
    """Seconds to wait: doubling from 0.5 to 30, each ±25 % so that many monitors do not return at once."""
    delay = FIRST_DELAY_S
    while True:
        yield delay * random.uniform(0.75, 1.25)
        delay = min(LAST_DELAY_S, delay * 2)


def decode(topic: str, payload: bytes, *, retained: bool) -> Message:
    """The message that a topic's payload is; Unreadable where it is none of ours. Never raises."""
    name = topic.rsplit("/", 1)[-1]
    try:
        match name:
            case FRAME.name:
                return FrameArrived(msgspec.json.decode(payload, type=Frame), payload, retained)
            case STATUS.name:
                return StatusArrived(msgspec.json.decode(payload, type=Status))
            case _:
                return EventArrived(msgspec.json.decode(payload, type=EventMessage))
    except UNREADABLE as exc:
        return Unreadable(f"cannot read {topic}{_newer(payload)}: {exc}")


class _Versioned(msgspec.Struct):
    version: int = 0


def _newer(payload: bytes) -> str:
    """Why a message of a later wire version does not decode; empty for any other."""
    with contextlib.suppress(*UNREADABLE):
        version = msgspec.json.decode(payload, type=_Versioned).version
        return f" (SCHEMA {version}>{VERSION}: update llmos-top)" if version > VERSION else ""
    return ""


def newest_stored(database: Path, count: int) -> list[FrameStored]:
    """The newest Frames in `database`, oldest first; empty when there is none, or no database that can be read."""
    try:
        rows = query.sql(database, f"SELECT payload FROM frames ORDER BY ts DESC LIMIT {count:d}").rows
        payloads = [str(payload).encode() for (payload,) in reversed(rows)]
        frames = [(msgspec.json.decode(payload, type=Frame), payload) for payload in payloads]
    except (LlmosError, *UNREADABLE):
        return []
    now = time.time()
    return [FrameStored(frame, payload, max(0.0, now - frame.at)) for frame, payload in frames]


def _payload(payload: object) -> bytes:
    return payload if isinstance(payload, bytes) else b""


def _reason(error: BaseException) -> str:
    """The innermost cause, in the operating system's words where it has any."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
