"""Where the MQTT broker comes from: an external one by URL, one that already answers, or a managed one on loopback.

The managed broker is `mosquitto` where it is installed, else the one in the `iotcore` wheel (docs/broker.md says why).
`broker_child` keeps it in a process session of its own; its files lie in `$LLMOS_HOME/broker/`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import msgspec

from llmosd.application import broker_child
from llmosd.application.endpoint import LOOPBACK, Answer, Endpoint, probe, settled
from llmosd.config import Config
from llmosd.errors import ConfigError, Unavailable
from llmosd.hardware.process import ProcessIdentity

START_S, READY_POLL_S = 10.0, 0.05
STATE = "state.json"
MAX_PACKET = 4 << 20  # bytes; a Frame is about 20 KB

MOSQUITTO = shutil.which(
    "mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
)

MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
persistence false
max_packet_size {max_packet}
max_queued_messages 1000
log_dest stderr
log_type error
log_type warning
"""

# A segment is memory per topic: 4 × 1 MiB each. MQTT 3.1.1 and 5 need a listener each; they share one router.
RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 4
"""
RUMQTTD_LISTENER = """\
[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 5000
max_payload_size = {max_packet}
max_inflight_count = 100
dynamic_filters = true
"""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker to connect to. `pid` is a managed one's watcher; `port_v5` is where MQTT 5 is spoken, if known."""

    endpoint: Endpoint
    kind: str  # external | existing | mosquitto | iotcore
    pid: int | None = None
    port_v5: int | None = None
    adopted: bool = False

    @property
    def managed(self) -> bool:
        return self.pid is not None

    @property
    def url(self) -> str:
        return str(self.endpoint)

    @property
    def url_v5(self) -> str:
        """Where MQTT 5 is spoken; empty if that is not known."""
        return str(replace(self.endpoint, port=self.port_v5)) if self.port_v5 else ""

    def dismiss(self) -> None:
        """End what was started for a daemon that will not serve; what was adopted has its grace time."""
        if self.pid is not None and not self.adopted:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def __str__(self) -> str:
        """One line for a person: what it is and where."""
        origin = {
            "external": "external broker",
            "existing": "a broker that was already answering there",
        }.get(self.kind, f"{self.kind}, managed, pid {self.pid}{', adopted' if self.adopted else ''}")
        second = f"; MQTT 5 on port {self.port_v5}" if self.port_v5 not in (None, self.endpoint.port) else ""
        return f"{self.url} ({origin}{second})"


@dataclass(frozen=True, slots=True)
class _Started:
    """What a daemon remembers of the broker it started, for the next one in the same home."""

    kind: str
    port: int
    port_v5: int
    watcher: ProcessIdentity

    @classmethod
    def read(cls, folder: Path) -> _Started | None:
        try:
            return msgspec.json.decode((folder / STATE).read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, folder: Path) -> None:
        (folder / STATE).write_bytes(msgspec.json.encode(self))

    def end(self) -> None:
        if self.watcher.alive():
            os.kill(self.watcher.pid, signal.SIGTERM)

    def broker(self, *, adopted: bool) -> Broker:
        return Broker(Endpoint(LOOPBACK, self.port), self.kind, self.watcher.pid, self.port_v5, adopted)


async def ensure_broker(config: Config, *, mosquitto: str | None = MOSQUITTO) -> Broker:
    """A broker to connect to, started if need be. Cheap when it runs, so it is asked before every connection.

    The managed broker's owner becomes the calling process. Raises ConfigError when the port is taken by something
    else, Unavailable when no broker can be started.
    """
    if config.mqtt:
        return Broker(Endpoint.parse(config.mqtt), "external")
    folder = config.home / "broker"
    folder.mkdir(parents=True, exist_ok=True)
    started = _Started.read(folder)
    port = config.mqtt_port or (started.port if started else _free_port())
    if started and started.port != port:
        started.end()  # nobody would publish there any more
    already_ours = broker_child.claim(folder)  # before looking, so that a watcher in its grace time stays
    answer = await settled(port)
    if answer is Answer.NOTHING:
        return await _start(folder, port, mosquitto)
    if answer is not Answer.ACCEPTED:
        raise ConfigError(
            f"port {port} is taken by {answer.value}; choose another with --mqtt-port, or name a broker with --mqtt",
            param="mqtt_port",
        )
    if started and started.port == port and started.watcher.alive():
        return started.broker(adopted=not already_ours)
    speaks_5 = await probe(LOOPBACK, port, level=5) is Answer.ACCEPTED
    return Broker(Endpoint(LOOPBACK, port), "existing", port_v5=port if speaks_5 else None)


async def _start(folder: Path, port: int, mosquitto: str | None) -> Broker:
    if mosquitto:
        command = [mosquitto, "-c", str(_write_mosquitto_conf(folder, port))]
        kind, port_v5 = "mosquitto", port
    elif find_spec("iotcore"):
        command = []
        kind, port_v5 = "iotcore", _second_port(port)
        _write_rumqttd_toml(folder, port, port_v5)
    else:
        raise Unavailable("no MQTT broker: install mosquitto, or the Python package iotcore, or name one with --mqtt")
    (folder / broker_child.LOG).unlink(missing_ok=True)
    watcher = await _spawn(folder, command)
    if watcher is None or not await _ready(port, watcher):
        raise Unavailable(f"the {kind} broker did not start on port {port}: {_last_words(folder)}")
    started = _Started(kind, port, port_v5, watcher)
    started.write(folder)
    return started.broker(adopted=False)


def _write_mosquitto_conf(folder: Path, port: int) -> Path:
    path = folder / "mosquitto.conf"
    path.write_text(MOSQUITTO_CONF.format(host=LOOPBACK, port=port, max_packet=MAX_PACKET))
    return path


def _write_rumqttd_toml(folder: Path, port: int, port_v5: int) -> None:
    listeners = (
        RUMQTTD_LISTENER.format(version=version, host=LOOPBACK, port=number, max_packet=MAX_PACKET)
        for version, number in (("v4", port), ("v5", port_v5))
    )
    (folder / broker_child.RUMQTTD_TOML).write_text(RUMQTTD + "".join(listeners))


async def _spawn(folder: Path, command: list[str]) -> ProcessIdentity | None:
    """Start the watcher in a session of its own: it prints its pid, and the process started here ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", broker_child.__name__, str(folder), *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    output, _ = await process.communicate()
    return ProcessIdentity.of(int(output)) if output else None


async def _ready(port: int, watcher: ProcessIdentity) -> bool:
    """Wait until the broker accepts; False when it ended or took too long."""
    for _ in range(int(START_S / READY_POLL_S)):
        if await probe(LOOPBACK, port) is Answer.ACCEPTED:
            return True
        if not watcher.alive():
            return False
        await asyncio.sleep(READY_POLL_S)
    return False


def _last_words(folder: Path) -> str:
    try:
        return (folder / broker_child.LOG).read_text(errors="replace")[-500:].strip() or "it said nothing"
    except OSError:
        return "it left no log"


def _second_port(port: int) -> int:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port + 1))
        except (OSError, OverflowError):
            return _free_port()
    return port + 1


def _free_port() -> int:
    with socket.socket() as attempt:
        attempt.bind((LOOPBACK, 0))
        return int(attempt.getsockname()[1])
