"""Servers to be measured: each started on a free port, and ended."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from llmosd.application import instance


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    model: str  # to ask for
    pid: int


@contextlib.contextmanager
def llmosd(models: Path, *flags: str) -> Iterator[Server]:
    """A daemon with a data directory of its own, on the installed models, with the default settings but for `flags`."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "models").symlink_to(models.absolute())
        command = [sys.executable, "-m", "llmosd", "start", "--port", "0", "--mqtt-port", "0", *flags]
        with _running(command, home / "log", {"LLMOS_HOME": folder}) as process:
            while (record := instance.read(home)) is None or record.state != "serving":
                _check(process, home / "log")
            model = httpx.get(f"{record.http}/v1/models", trust_env=False).json()["data"][0]["id"]
            yield Server(record.http, model, process.pid)


@contextlib.contextmanager
def llama_server(program: Path, weights: Path, slots: int, threads: int, context: int, *flags: str) -> Iterator[Server]:
    """llama.cpp's own server with `slots` slots of `context` tokens each; all else but `flags` is its default."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [str(program), "-m", str(weights), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-np", str(slots), "-t", str(threads), "-c", str(slots * context), *flags]
        with _running(command, Path(folder) / "log", {}) as process:
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                _check(process, Path(folder) / "log")
            yield Server(f"http://127.0.0.1:{port}", weights.stem, process.pid)


@contextlib.contextmanager
def _running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise SystemExit(f"{process.args!r} ended:\n{log.read_text()[-2000:]}")
    time.sleep(0.1)


def _healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False
