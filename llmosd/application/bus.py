"""Telemetry to the broker: survives its absence, says what was missed, never holds up the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import aiomqtt
import msgspec

from llmosd.application.broker import Broker
from llmosd.application.endpoint import Endpoint
from llmosd.application.eventlog import EventLog
from llmosd.application.ratelimit import EventRate
from llmosd.application.topics import COMMAND, EVENT, FRAME, REPLY, STATUS, Topic
from llmosd.errors import LlmosError
from llmosd.wire import CommandReply, EventMessage, Frame, Status

log = logging.getLogger(__name__)

KEEPALIVE_S = 10
TIMEOUT_S = 5.0  # of a connection attempt and of an acknowledgement
STATUS_EVERY_S = 10.0  # so that the late last will of a lost connection does not stay
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
QUEUE_LIMIT = 64  # events that wait for the broker's acknowledgements
COMMAND_LIMIT = 64  # that are answered at a time; more are dropped, and whoever sent them gets no reply

Payload = Status | Frame | EventMessage | CommandReply
Answer = Callable[[bytes, bool], Awaitable[CommandReply]]


def backoff(attempt: int, jitter: float) -> float:
    """Seconds before attempt 1, 2, …: doubling from 0.5 to 30, of which `jitter` (0 … 1) may take away half."""
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(attempt - 1, 16)) * (1 - jitter / 2)


class Bus:
    """Publishes one daemon's Status, Frames and events as topics.py says. Owned by the event loop; `run` is its task.

    `ensure` is asked for the broker before every attempt to connect, so that a managed one that died is started again.
    Each attempt has an aiomqtt client of its own: a used one can seem connected when it is not. Frames are published
    latest first; what did not go out while the broker was away is counted in `gaps` and noted when it is back.
    """

    def __init__(
        self, ensure: Callable[[], Awaitable[Broker]], status: Status, events: EventLog, answer: Answer | None = None
    ) -> None:
        """`answer` gets the commands that come, and whether only this machine can have sent them."""
        self.broker: Broker | None = None
        self.connected = False
        self.gaps = 0  # Frames and events that did not reach the broker, since start
        self._taking = True  # connected, or not yet known that there is no broker
        self._ensure = ensure
        self._status = status
        self._log = events
        self._answer = answer
        self._answering: set[asyncio.Task[None]] = set()
        self._replies: deque[CommandReply] = deque()
        self._frame: Frame | None = None
        self._events: deque[EventMessage] = deque()
        self._rate = EventRate(time.monotonic())
        self._left_out = 0  # events over the rate since the last mark
        self._noted_gaps = 0
        self._away_since = time.time()
        self._wake = asyncio.Event()

    def publish_frame(self, frame: Frame) -> None:
        """Send soon; a Frame that is still unsent is superseded."""
        if not self._taking or self._frame is not None:
            self.gaps += 1
        if self._taking:
            self._frame = frame
            self._wake.set()

    def publish_event(self, event: EventMessage) -> None:
        """Send soon, unless there are too many: those are counted, and the count is sent."""
        if not self._taking:
            self.gaps += 1
        elif len(self._events) >= QUEUE_LIMIT or not self._rate.allow(event.severity, time.monotonic()):
            self._left_out += 1
        else:
            self._events.append(event)
            self._wake.set()

    def set_state(self, state: str) -> None:
        """Publish a new Status soon: `online` or `draining`."""
        self._status = replace(self._status, state=state, at=time.time())
        self._wake.set()

    async def run(self) -> None:
        """Never returns; cancelling it publishes `offline` and says goodbye to the broker."""
        attempt = 0
        while True:
            try:
                await self._session()
            except (aiomqtt.MqttError, LlmosError, OSError) as exc:
                attempt = 1 if self.connected else attempt + 1
                self._lost(exc, attempt)
            _check_cancelled()
            await asyncio.sleep(backoff(attempt, random.random()))

    async def _session(self) -> None:
        self.broker = await self._ensure()
        async with self._client(self.broker.endpoint) as client:
            try:
                await self._send(client, STATUS, self._status)
                await client.subscribe(COMMAND.on(self._status.node), COMMAND.qos)
                self._found()
                listening = asyncio.create_task(self._listen(client, self.broker), name="commands")
                try:
                    await self._serve(client)
                finally:
                    listening.cancel()
            except asyncio.CancelledError:
                with suppress(aiomqtt.MqttError):
                    await self._send(client, STATUS, replace(self._status, state="offline", at=time.time()))
                raise

    def _client(self, endpoint: Endpoint) -> aiomqtt.Client:
        offline = msgspec.json.encode(replace(self._status, state="offline"))
        return aiomqtt.Client(
            endpoint.host,
            endpoint.port,
            username=endpoint.username,
            password=endpoint.password,
            tls_context=ssl.create_default_context() if endpoint.tls else None,
            identifier=f"llmosd-{self._status.node}-{os.getpid()}",  # takes over this daemon's own stale session
            will=aiomqtt.Will(STATUS.on(self._status.node), offline, STATUS.qos, STATUS.retain),
            keepalive=KEEPALIVE_S,
            timeout=TIMEOUT_S,
            max_queued_outgoing_messages=QUEUE_LIMIT,
            max_queued_incoming_messages=QUEUE_LIMIT,
        )

    async def _serve(self, client: aiomqtt.Client) -> None:
        """Send what there is until the connection fails. An event leaves the queue when it is acknowledged."""
        sent, sent_at = self._status, time.monotonic()
        while True:
            _check_cancelled()
            if self._status is not sent or time.monotonic() - sent_at >= STATUS_EVERY_S:
                sent = self._status = replace(self._status, at=time.time())
                sent_at = time.monotonic()
                await self._send(client, STATUS, sent)
            while self._replies:
                await self._send(client, REPLY, self._replies[0])
                self._replies.popleft()
            self._mark_left_out()
            while self._events:
                await self._send(client, EVENT, self._events[0])
                self._events.popleft()
            await self._send_frame(client)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._wake.wait()
            self._wake.clear()

    async def _listen(self, client: aiomqtt.Client, broker: Broker) -> None:
        """Answer commands side by side: `wait` may take long. A retained one is none for now: it would come again."""
        with suppress(aiomqtt.MqttError):  # whoever sends notices as well
            async for message in client.messages:
                if isinstance(message.payload, bytes) and not message.retain and len(self._answering) < COMMAND_LIMIT:
                    task = asyncio.create_task(self._reply(message.payload, broker.managed), name="command")
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)

    async def _reply(self, payload: bytes, local: bool) -> None:
        if self._answer is not None:
            self._replies.append(await self._answer(payload, local))
            self._wake.set()

    async def _send_frame(self, client: aiomqtt.Client) -> None:
        frame, self._frame = self._frame, None
        if frame is not None:
            try:
                await self._send(client, FRAME, frame)
            except aiomqtt.MqttError:
                self.gaps += 1
                raise

    async def _send(
        self, client: aiomqtt.Client, topic: Topic, payload: Status | Frame | EventMessage | CommandReply
    ) -> None:
        await client.publish(topic.on(self._status.node), msgspec.json.encode(payload), topic.qos, topic.retain)

    def _mark_left_out(self) -> None:
        if self._left_out and self._rate.allow("info", time.monotonic()):
            text = f"{self._left_out} events left out here (the database has them)"
            self._events.append(self._log.message("info", "events.left_out", text))
            self._left_out = 0

    def _found(self) -> None:
        self.connected = self._taking = True
        if missed := self.gaps - self._noted_gaps:
            self._noted_gaps = self.gaps
            seconds = time.time() - self._away_since
            self._log.note("warning", "telemetry.gap", f"{missed} messages unpublished in {seconds:.0f} s: no broker")
        log.info("publishing to %s", self.broker)

    def _lost(self, exc: Exception, attempt: int) -> None:
        if self._taking:
            self.connected = self._taking = False
            self._away_since = time.time()
            self.gaps += len(self._events) + (self._frame is not None)
            self._events.clear()
            self._replies.clear()
            self._frame = None
        log.log(logging.WARNING if attempt == 1 else logging.DEBUG, "no telemetry to the broker: %s", exc)


def _check_cancelled() -> None:
    """Raise CancelledError where this task was cancelled and something underneath took that for itself.

    `asyncio.wait_for` before Python 3.12 drops a cancellation that comes with the result it waits for, such as an
    acknowledgement; and the error of a goodbye that the broker does not answer takes the cancellation's place.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
