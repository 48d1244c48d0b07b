"""Where the broker comes from, on real ones: started, adopted, found, refused, and gone with its daemon."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from llmosd.application.broker import Broker, ensure_broker
from llmosd.application.endpoint import Answer, Endpoint, probe, settled
from llmosd.config import Config
from llmosd.errors import ConfigError, Unavailable
from llmosd.hardware.process import ProcessIdentity
from tests.telemetry.conftest import broker_processes, kill, subscriber, until

ROOT = Path(__file__).parents[2]


@contextmanager
def prepared(home: Path, port: int, mosquitto: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon's process that waits for a line to begin; killed at the end."""
    kind = "mosquitto" if mosquitto else "iotcore"
    command = [sys.executable, "-m", "tests.telemetry.daemon", home, str(port), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def begin(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """Its broker's watcher and whether that was adopted."""
    assert process.stdin and process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    pid, adopted = process.stdout.readline().decode().split()
    return int(pid), adopted == "True"


@asynccontextmanager
async def listener(answer: bytes) -> AsyncIterator[int]:
    """Something on a port that answers anything with `answer` and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def free_port() -> int:
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return int(attempt.getsockname()[1])


async def test_a_started_broker_speaks_both_versions_on_loopback_and_shares_messages(
    config: Config, mosquitto: str | None
) -> None:
    broker = await ensure_broker(config, mosquitto=mosquitto)
    assert broker.managed and broker.kind == ("mosquitto" if mosquitto else "iotcore") and not broker.adopted
    assert broker.port_v5 and (broker.port_v5 == broker.endpoint.port) == bool(mosquitto)
    async with subscriber(broker.port_v5, aiomqtt.ProtocolVersion.V5) as got:
        async with aiomqtt.Client("127.0.0.1", broker.endpoint.port) as client:
            await client.publish("llmos/test/event", b"1", 1)
        await until(lambda: got == [("llmos/test/event", 1, False)])
    open_to = {c.laddr.ip for p in broker_processes(broker) for c in p.net_connections() if c.status == "LISTEN"}
    assert open_to == {"127.0.0.1"}
    assert all(os.getsid(p.pid) != os.getsid(0) for p in broker_processes(broker))


async def test_a_broker_that_is_not_needed_after_all_is_ended(config: Config, mosquitto: str | None) -> None:
    broker = await ensure_broker(config, mosquitto=mosquitto)
    replace(broker, adopted=True).dismiss()
    assert await ensure_broker(config, mosquitto=mosquitto) == broker
    broker.dismiss()
    await until(lambda: broker.pid is not None and ProcessIdentity.of(broker.pid) is None)
    broker.dismiss()


async def test_a_second_call_finds_the_same_broker(config: Config, mosquitto: str | None) -> None:
    first = await ensure_broker(config, mosquitto=mosquitto)
    assert await ensure_broker(config, mosquitto=mosquitto) == first


async def test_a_killed_broker_is_started_again_on_the_same_port(config: Config, mosquitto: str | None) -> None:
    first = await ensure_broker(config, mosquitto=mosquitto)
    kill(first)
    second = await ensure_broker(config, mosquitto=mosquitto)
    assert second.endpoint == first.endpoint and second.pid != first.pid and not second.adopted


async def test_a_home_that_moves_to_another_port_takes_its_broker_along(config: Config, mosquitto: str | None) -> None:
    first = await ensure_broker(config, mosquitto=mosquitto)
    second = await ensure_broker(replace(config, mqtt_port=free_port()), mosquitto=mosquitto)
    assert second.managed and second.endpoint != first.endpoint
    await until(lambda: first.pid is not None and ProcessIdentity.of(first.pid) is None)


async def test_a_broker_that_somebody_else_started_is_used_and_said_so(config: Config, mosquitto: str | None) -> None:
    first = await ensure_broker(config, mosquitto=mosquitto)
    other = Config(home=config.home / "other", mqtt_port=first.endpoint.port)
    found = await ensure_broker(other, mosquitto=mosquitto)
    assert found.kind == "existing" and not found.managed
    assert "already answering" in str(found)


async def test_after_kill_9_of_its_daemon_the_last_will_goes_out_and_the_broker_ends(
    config: Config, mosquitto: str | None
) -> None:
    port = free_port()
    with prepared(config.home, port, mosquitto) as process:
        watcher, _ = begin(process)
        async with subscriber(port) as got:
            await until(lambda: any(topic == "llmos/test/frame" for topic, _, _ in got))
            process.kill()
            await until(lambda: got[-1][:1] == ("llmos/test/status",) and got[-1][1]["state"] == "offline")
            assert got[-1][1]["pid"] == process.pid
        late: list[str] = []
        async with subscriber(port) as got:  # whoever comes later reads it too: it is retained
            await until(lambda: any(payload.get("state") == "offline" for _, payload, _ in got))
            late += [topic for topic, _, retained in got if retained]
        assert "llmos/test/status" in late
    await until(lambda: ProcessIdentity.of(watcher) is None)
    assert await settled(port) is Answer.NOTHING


async def test_a_restarted_daemon_adopts_the_broker_in_its_grace_time(config: Config, mosquitto: str | None) -> None:
    port = free_port()
    with prepared(config.home, port, mosquitto) as process, prepared(config.home, port, mosquitto) as heir:
        first, adopted = begin(process)
        assert not adopted
        process.kill()
        assert begin(heir) == (first, True)
        await asyncio.sleep(6)  # more than the grace time after the first daemon's end
        assert ProcessIdentity.of(first) is not None and await probe("127.0.0.1", port) is Answer.ACCEPTED


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x20\x02"])
async def test_a_port_taken_by_something_else_is_an_error_that_says_what_to_do(config: Config, answer: bytes) -> None:
    async with listener(answer) as port:
        with pytest.raises(ConfigError, match=rf"port {port} is taken by something that is no MQTT.*--mqtt-port"):
            await ensure_broker(replace(config, mqtt_port=port))


async def test_a_broker_that_refuses_is_told_apart(config: Config) -> None:
    async with listener(b"\x20\x02\x00\x05") as port:
        assert await probe("127.0.0.1", port) is Answer.REFUSED
        with pytest.raises(ConfigError, match="a broker that refuses"):
            await ensure_broker(replace(config, mqtt_port=port))


async def test_a_broker_that_cannot_start_says_why(config: Config) -> None:
    with pytest.raises(Unavailable, match="did not start on port"):
        await ensure_broker(config, mosquitto="/bin/false")


def test_an_external_broker_needs_nothing_running_and_its_password_is_never_shown(tmp_path: Path) -> None:
    broker = asyncio.run(ensure_broker(Config(home=tmp_path, mqtt="mqtts://me:p%40ss@broker.example")))
    assert broker == Broker(Endpoint("broker.example", 8883, True, "me", "p@ss"), "external")
    assert str(broker) == "mqtts://broker.example:8883 (external broker)"


@pytest.mark.parametrize("url", ["http://host", "mqtt://", "mqtt://host:99999", "mqtt://host/topic", "host:1883"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="mqtt://"):
        Endpoint.parse(url)


def test_an_unusable_url_is_not_repeated_since_it_may_hold_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse("mqtt://me:secret@host:port")
    assert "secret" not in caught.value.message


def test_a_reused_pid_is_not_the_same_process() -> None:
    me = ProcessIdentity.current()
    assert me.alive() and not replace(me, started=me.started - 60).alive()


def test_a_dead_process_that_nobody_reaped_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ProcessIdentity.of(process.pid) is None
