"""A real broker on a free port, and a publisher that speaks as a daemon does."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiomqtt
import iotcore
import msgspec
import pytest

from llmosd.application.broker import MOSQUITTO
from llmosd.application.endpoint import Endpoint
from llmosd.application.topics import EVENT, FRAME, STATUS
from tests.tui.frames import event, frame, status


class LocalBroker:
    """Mosquitto where it is installed, else the one of the iotcore wheel; may be stopped and started again."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | iotcore.Broker | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    def start(self) -> None:
        if MOSQUITTO is None:
            self._process = iotcore.Broker(port=self.port, listen="127.0.0.1").start()
            return
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([MOSQUITTO, "-p", str(self.port)], stdout=quiet, stderr=quiet)
        self._wait_until_it_listens()

    def _wait_until_it_listens(self) -> None:
        for _ in range(3000):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("mosquitto does not listen")

    def stop(self) -> None:
        match self._process:
            case subprocess.Popen() as process:
                process.kill()
                process.wait()
            case iotcore.Broker() as broker:
                broker.stop()
        self._process = None


@dataclass
class Publisher:
    """One daemon's voice."""

    client: aiomqtt.Client
    node: str

    async def frame(self, seq: int = 1, *, at: float | None = None, **changes: Any) -> None:
        made = replace(frame(seq, **changes), node=self.node, at=time.time() if at is None else at)
        await self.client.publish(FRAME.on(self.node), msgspec.json.encode(made), FRAME.qos, FRAME.retain)

    async def status(self, word: str = "online") -> None:
        payload = msgspec.json.encode(replace(status(word), node=self.node))
        await self.client.publish(STATUS.on(self.node), payload, STATUS.qos, STATUS.retain)

    async def event(self, seq: int, text: str) -> None:
        payload = msgspec.json.encode(replace(event(seq, text), node=self.node))
        await self.client.publish(EVENT.on(self.node), payload, EVENT.qos)


@asynccontextmanager
async def speaking(broker: LocalBroker, node: str) -> AsyncIterator[Publisher]:
    """Publish as `node`; leaving cleanly says nothing, as a daemon does not without a word."""
    will = aiomqtt.Will(
        STATUS.on(node), msgspec.json.encode(replace(status("offline"), node=node)), STATUS.qos, STATUS.retain
    )
    async with aiomqtt.Client("127.0.0.1", broker.port, will=will) as client:
        yield Publisher(client, node)


@pytest.fixture(scope="session")
def broker() -> Iterator[LocalBroker]:
    """Shared: use a node name of your own."""
    running = LocalBroker()
    yield running
    running.stop()


@pytest.fixture
def own_broker() -> Iterator[LocalBroker]:
    """To stop and start."""
    running = LocalBroker()
    yield running
    running.stop()


@pytest.fixture
def node(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)
