"""How a daemon ends: drained, forced, killed; and what the next one finds."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from started import MODEL, NODE, PATIENCE_S, Daemon, environment, eventually, started

from llmosd.application import instance
from llmosd.errors import LlmosError

QUESTION = [{"role": "user", "content": "Tell me a story."}]


class Asking(threading.Thread):
    """A client with a stream open; `text` and `error` are there when it has ended."""

    def __init__(self, daemon: Daemon, tokens: int) -> None:
        super().__init__()
        self.text, self.finish, self.error = "", "", ""
        self._daemon, self._tokens = daemon, tokens
        self._first = threading.Event()
        self.start()
        assert self._first.wait(PATIENCE_S)

    def run(self) -> None:
        try:
            with self._daemon.client() as client:
                for piece in client.chat_stream(QUESTION, MODEL, max_tokens=self._tokens, ignore_eos=True):
                    self._first.set()
                    self.text += piece.text
                    self.finish = piece.finish or self.finish
        except LlmosError as exc:
            self.error = exc.message
        finally:
            self._first.set()


def test_sigterm_drains(home: Path) -> None:
    with started(home) as daemon:
        asking = Asking(daemon, 300)
        daemon.signal(signal.SIGTERM)
        eventually(lambda: daemon.record.state == "draining", "the daemon drains")
        with daemon.client() as client, pytest.raises(LlmosError, match="drain"):
            client.complete("x", MODEL, max_tokens=1)
        assert daemon.wait() == 0
        asking.join()
    assert (asking.finish, asking.error) == ("length", "")
    assert daemon.record.state == "stopped"
    assert not (home / instance.PID_FILE).exists()


def test_a_second_sigterm_forces(home: Path) -> None:
    with started(home) as daemon:
        asking = Asking(daemon, 4000)
        daemon.signal(signal.SIGTERM)
        eventually(lambda: daemon.record.state == "draining", "the daemon drains")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        asking.join()
    assert asking.finish == "" and "stopped" in asking.error


def test_a_stop_during_the_first_answer_is_no_failure(home: Path) -> None:
    command = [sys.executable, "-m", "llmosd", "run", "--serve", "--port", "0", "--mqtt-port", "0"]
    with subprocess.Popen(
        [*command, "--max-tokens", "6000", "Tell me a very long story."],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
    ) as process:
        daemon = Daemon(home, process)
        assert process.stdout and process.stdout.readline().startswith(b"API: http")
        for state in ("draining", "stopped"):
            process.send_signal(signal.SIGTERM)
            eventually(lambda state=state: daemon.record.state == state, f"the daemon is {state}")
        assert process.wait(PATIENCE_S) == 0


@contextmanager
def subscribed(daemon: Daemon, topic: str) -> Iterator[list[str]]:
    """Every payload of a topic from now on."""
    command = ["mosquitto_sub", "-p", daemon.mqtt_port, "-t", topic]
    heard: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout
        assert lines is not None
        thread = threading.Thread(target=lambda: [heard.append(line) for line in lines])
        thread.start()
        eventually(lambda: heard, "the retained status comes")
        try:
            yield heard
        finally:
            process.terminate()
            thread.join()


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto_sub is not installed")
def test_kill_9_during_load_then_restart(home: Path) -> None:
    with started(home) as daemon:
        with daemon.client() as client:
            done = client.complete("One, two,", MODEL, max_tokens=3, temperature=0)
            assert done.finish == "length"
            asking = [Asking(daemon, 4000) for _ in range(4)]
            accepted = {request.id for request in client.requests()}
        with subscribed(daemon, f"llmos/{NODE}/status") as heard:
            daemon.signal(signal.SIGKILL)
            daemon.wait()
            eventually(lambda: json.loads(heard[-1])["state"] == "offline", "the last will comes")
        for client_thread in asking:
            client_thread.join()
            assert client_thread.error
        assert daemon.record.state == "failed"

    with started(home) as again, closing(sqlite3.connect(f"file:{again.record.db}?mode=ro", uri=True)) as database:
        rows = {id: (state, error) for id, state, error in database.execute("SELECT id, state, error FROM requests")}
        assert rows.keys() == accepted
        assert sorted(state for state, _ in rows.values()) == ["failed"] * 4 + ["finished"]
        assert all(error.startswith("daemon stopped at ") for state, error in rows.values() if state == "failed")
        assert [why for (why,) in database.execute("SELECT why FROM gaps")] == ["daemon killed"]
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with again.client() as client:
            assert client.complete("One, two,", MODEL, max_tokens=3, temperature=0).text == done.text
