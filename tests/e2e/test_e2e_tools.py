"""What people have on their machines: curl, mosquitto_sub, sqlite3, and this project's own commands."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from started import MODEL, NODE, PATIENCE_S, Daemon, environment, eventually, started

from llmosd.application.broker import MOSQUITTO

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout


@needs("curl")
def test_curl(daemon: Daemon) -> None:
    address, body = f"{daemon.url}/v1/chat/completions", json.dumps(BODY)
    json_type = ("-H", "Content-Type: application/json")
    answer = json.loads(output_of("curl", "-sS", "--fail-with-body", address, *json_type, "-d", body))
    assert answer["choices"][0]["message"]["content"]
    streamed = output_of("curl", "-sSN", address, *json_type, "-d", json.dumps(BODY | {"stream": True}))
    lines = [line for line in streamed.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["model"] == MODEL for line in lines[:-1])


def subscribe(port: str, messages: int) -> dict[str, dict[str, object]]:
    """The latest payload of each topic below llmos/."""
    text = output_of("mosquitto_sub", "-p", port, "-t", "llmos/#", "-v", "-C", str(messages), "-W", "30")
    return {topic: json.loads(payload) for topic, payload in (line.split(" ", 1) for line in text.splitlines())}


def check_telemetry(daemon: Daemon) -> None:
    seen = subscribe(daemon.mqtt_port, 4)
    status, frame = seen[f"llmos/{NODE}/status"], seen[f"llmos/{NODE}/frame"]
    assert (status["state"], status["http"]) == ("online", daemon.url)
    assert (frame["version"], frame["node"], frame["state"], frame["model"]) == (1, NODE, "serving", MODEL)


@needs("mosquitto_sub")
def test_mosquitto_sub_on_the_default_broker(daemon: Daemon) -> None:
    check_telemetry(daemon)


@contextmanager
def mosquitto(folder: Path, port: int) -> Iterator[None]:
    """A broker that the daemon does not manage."""
    config = folder / "external.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen([str(MOSQUITTO), "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
@needs("mosquitto_sub")
def test_an_external_mosquitto_that_goes_and_comes_back(home: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with started(home, "--mqtt", f"mqtt://127.0.0.1:{port}") as daemon:
        for _ in range(2):
            with mosquitto(tmp_path, port):
                eventually(lambda: daemon.metric("llmos_broker_connected"), "the daemon connects")
                check_telemetry(daemon)
            eventually(lambda: not daemon.metric("llmos_broker_connected"), "the daemon notices")


@needs("sqlite3")
def test_sqlite3_and_query_agree(daemon: Daemon) -> None:
    with daemon.client() as client:
        answer = client.complete("Once upon a time", MODEL, max_tokens=5, user="ada")
    assert answer.usage.completion_tokens == 5
    database = f"file:{daemon.record.db}?mode=ro"
    parts = "queued_ns + prefill_ns + decode_ns + preempted_ns + swapped_ns + other_ns"
    sql = f"SELECT state, completion_tokens, {parts} - total_ns"
    find = f"{sql} FROM requests WHERE user = 'ada' AND state = 'finished'"
    assert eventually(lambda: output_of("sqlite3", database, find), "the request is stored") == "finished|5|0\n"

    asked = json.loads(daemon.cli("query", "requests", "--json").stdout)
    (row,) = [row for row in asked if row["user"] == "ada"]
    parts = sum(row[f"{part}_ms"] for part in ("queued", "prefill", "decode", "preempted", "other"))
    assert parts == pytest.approx(row["total_ms"])
    assert (row["model"], row["completion_tokens"], row["nice"]) == (MODEL, 5, 0)
    counted = json.loads(
        daemon.cli("query", "--sql", "SELECT count(*) AS n FROM requests WHERE user='ada'", "--json").stdout
    )
    assert counted == [{"n": 1}]


@pytest.mark.parametrize("name", ["requests", "latency", "throughput", "utilisation", "events"])
@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)], ids=["table", "json", "csv"])
def test_every_canned_query_in_every_form(daemon: Daemon, name: str, form: tuple[str, ...]) -> None:
    asked = daemon.cli("query", name, "--since", "10m", *form)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout


@pytest.mark.parametrize("command", [("llmos-top",), ("llmosd", "top")], ids=" ".join)
def test_the_monitor_gives_one_frame(daemon: Daemon, command: tuple[str, ...]) -> None:
    program = str(Path(sys.executable).with_name(command[0]))
    shown = subprocess.run(
        [program, *command[1:], "--once", "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(daemon.home),
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    frame = json.loads(shown.stdout)
    assert (frame["node"], frame["model"], frame["http"]) == (NODE, MODEL, daemon.url)
    assert frame["pages"]["total"] > 0
