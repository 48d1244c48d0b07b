"""A real daemon in a process of its own: real model, real broker, free ports, a data directory of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from llmosd.application import instance
from llmosd.application.client import Client
from llmosd.application.instance import Record

MODEL = "smollm2-135m-instruct"
NODE = "testnode"
PATIENCE_S = 100.0

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
    """What `look` returns once it is true."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {patience_s:.0f} s")


def environment(home: Path) -> dict[str, str]:
    """This process's, without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    return kept | {"LLMOS_HOME": str(home)}


def make_home(base: Path, model_home: Path) -> Path:
    """A data directory that has the model and nothing else."""
    home = base / "home"
    home.mkdir()
    (home / "models").symlink_to(model_home / "models")
    return home


@dataclass(slots=True)
class Daemon:
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def record(self) -> Record:
        record = instance.read(self.home)
        assert record is not None
        return record

    @property
    def url(self) -> str:
        return self.record.http

    @property
    def mqtt_port(self) -> str:
        return self.record.mqtt.rsplit(":", 1)[1]

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def client(self) -> Client:
        return Client(self.url)

    def cli(self, *args: str, stdin: str = "", key: str = "") -> subprocess.CompletedProcess[str]:
        return cli(self.home, *args, stdin=stdin, key=key)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S).raise_for_status()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; labels that are given must match."""
        for line in self.get("/metrics").text.splitlines():
            if re.match(rf"{re.escape(name)}[{{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"/metrics has no {name} {labels}")

    def pages_used(self) -> float:
        return self.metric("llmos_pages_used")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


def cli(home: Path, *args: str, stdin: str = "", key: str = "") -> subprocess.CompletedProcess[str]:
    """The `llmosd` command, as a person would run it, who has this key."""
    command = [sys.executable, "-m", "llmosd", *args]
    env = environment(home) | ({"LLMOS_KEY": key} if key else {})
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False
    )


@contextmanager
def started(home: Path, *flags: str) -> Iterator[Daemon]:
    """A daemon that serves inside the block, drained at its end unless it has ended by then."""
    ports = ["--port", "0", "--mqtt-port", "0", "--node", NODE]
    command = [sys.executable, "-m", "llmosd", "start", *ports, *flags]
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(home))
    daemon = Daemon(home, process)
    try:
        eventually(lambda: serves(daemon), f"the daemon serves; its log: {daemon.log}")
        yield daemon
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def serves(daemon: Daemon) -> bool:
    assert daemon.process.poll() is None, f"the daemon ended: {daemon.log}"
    record = instance.read(daemon.home)
    return record is not None and record.pid == daemon.process.pid and record.state == "serving"
