"""Real brokers: every test that needs one runs against mosquitto and against the broker in the iotcore wheel."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import psutil
import pytest

from llmosd.application.broker import MOSQUITTO, Broker
from llmosd.config import Config


@pytest.fixture(params=["mosquitto", "iotcore"])
def mosquitto(request: pytest.FixtureRequest) -> str | None:
    """What `ensure_broker` is given as its mosquitto: the program, or None for iotcore."""
    if request.param == "iotcore":
        return None
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    return MOSQUITTO


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    """A home with a free port for its broker, which is ended after the test."""
    yield Config(home=tmp_path, mqtt_port=0, node="test")
    with suppress(OSError, KeyError, msgspec.DecodeError, psutil.Error):
        state = msgspec.json.decode((tmp_path / "broker" / "state.json").read_bytes())
        psutil.Process(state["watcher"]["pid"]).terminate()


def broker_processes(broker: Broker) -> list[psutil.Process]:
    """The watcher, and the broker's own process where it has one."""
    watcher = psutil.Process(broker.pid)
    return [watcher, *watcher.children(recursive=True)]


def kill(broker: Broker) -> None:
    """kill -9 of the broker itself (with iotcore that is the watcher)."""
    os.kill(broker_processes(broker)[-1].pid, signal.SIGKILL)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Returns once it holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


Message = tuple[str, Any, bool]


@asynccontextmanager
async def subscriber(
    port: int, protocol: aiomqtt.ProtocolVersion = aiomqtt.ProtocolVersion.V311
) -> AsyncIterator[list[Message]]:
    """A growing list of (topic, decoded payload, retained) of everything under llmos/."""
    got: list[Message] = []

    async def receive(client: aiomqtt.Client) -> None:
        with suppress(aiomqtt.MqttError):
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                got.append((message.topic.value, msgspec.json.decode(message.payload), message.retain))

    with suppress(aiomqtt.MqttError):  # a broker that was killed cannot be told goodbye
        async with aiomqtt.Client("127.0.0.1", port, protocol=protocol) as client:
            await client.subscribe("llmos/#", 1)
            task = asyncio.create_task(receive(client))
            yield got
            task.cancel()
