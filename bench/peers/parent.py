"""The parent's end of the comparison: one child process for each engine, stopped while another is timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from peers.catalogue import Peer


class ChildFailed(Exception):
    """The child died or never started; carries the last it said."""


class Child:
    """A stopped process costs nothing, whatever its threads were waiting for."""

    def __init__(self, peer: Peer, environment: Mapping[str, str]) -> None:
        self.name = peer.name
        self._process = subprocess.Popen(
            peer.command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, *arguments: object) -> dict[str, Any]:
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def seconds(self, method: str, *arguments: object) -> float:
        return float(self.ask(method, *arguments)["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ChildFailed(f"{self.name} ended with status {self._process.wait()}: {self._process.args!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer
