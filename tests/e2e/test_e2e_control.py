"""The same commands and the same refusals over HTTP, MQTT and the command line of a started daemon."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mqtt import Commander
from started import MODEL, NODE, PATIENCE_S, Daemon, cli, eventually, started

from llmosd.application.cli import main

LONG = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


@contextmanager
def streaming(daemon: Daemon, id: str, key: str = "", **fields: Any) -> Iterator[list[str]]:
    """A long request of this id; the lines that its stream brings, as they come, until it ends."""
    headers = {"X-Request-Id": id} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = LONG | {"stream": True} | fields
    lines: list[str] = []

    def read() -> None:
        url = f"{daemon.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=PATIENCE_S) as response:
            for line in response.iter_lines():
                lines.append(line)  # noqa: PERF402  others look while it grows

    reader = threading.Thread(target=read)
    reader.start()
    try:
        eventually(lambda: lines, "the stream begins")
        yield lines
    finally:
        reader.join(PATIENCE_S)
    assert not reader.is_alive(), "the stream ends"


@pytest.fixture(scope="module")
def commander(daemon: Daemon) -> Iterator[Commander]:
    with Commander(daemon.mqtt_port, NODE) as commander:
        yield commander


def test_a_stream_in_flight_is_controlled_over_mqtt(daemon: Daemon, commander: Commander) -> None:
    with streaming(daemon, "over-mqtt", user="ann", metadata={"session": "chat"}) as texts:
        [row] = commander.ask("ps", session="chat")["requests"]
        assert (row["id"], row["user"], row["session"], row["model"]) == ("over-mqtt", "ann", "chat", MODEL)
        assert commander.ask("nice", user="ann", nice=5)["requests"][0]["nice"] == 5
        assert commander.ask("suspend", ids=["over-mqtt"])["requests"][0]["state"] == "suspended"
        [held] = json.loads(daemon.cli("ps", "--state", "suspended", "--json").stdout)
        assert (held["id"], held["nice"], held["pages"]) == ("over-mqtt", 5, 0)
        assert commander.ask("wait", user="ann", timeout_s=0)["requests"][0]["state"] == "suspended"
        length = len(texts)
        assert commander.ask("resume", state="suspended")["error"] is None
        eventually(lambda: len(texts) > length, "it goes on")
        killed = commander.ask("kill", model=MODEL, user="ann")
        assert [(row["id"], row["state"], row["pages"]) for row in killed["requests"]] == [
            ("over-mqtt", "cancelled", 0)
        ]
    assert "request_cancelled" in texts[-2] + texts[-1]
    eventually(lambda: daemon.pages_used() == 0, "its pages are free")


WRONG: list[tuple[list[str], dict[str, Any], str]] = [
    (["nice", "20", "here"], {"command": "nice", "ids": ["here"], "nice": 20}, "nice must be -20 to 19, not 20"),
    (["nice", "-21", "here"], {"command": "nice", "ids": ["here"], "nice": -21}, "nice must be -20 to 19, not -21"),
    (["kill"], {"command": "kill"}, "say which requests are meant"),
    (["kill", "--state", "up"], {"command": "kill", "state": "up"}, "state must be one of"),
    (["policy", "random"], {"command": "policy", "policy": "random"}, "random"),
    (["kill", "gone"], {"command": "kill", "ids": ["gone"]}, "gone"),
]


def test_bad_input_is_refused_alike_and_changes_nothing(
    daemon: Daemon, commander: Commander, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_HOME", str(daemon.home))
    policy = daemon.get("/v1/policy").json()
    with streaming(daemon, "here"):
        try:
            for args, command, said in WRONG:
                answer = httpx.post(f"{daemon.url}/v1/control", json=command, timeout=30)
                assert answer.status_code in (400, 404) and said in answer.json()["error"]["message"]
                reply = commander.ask(**command)
                assert said in reply["error"]["message"] and reply["requests"] == []
                assert reply["error"]["code"] == answer.json()["error"]["code"]
                assert main(args) == 2
                error = capsys.readouterr().err
                assert said in error and error.count("\n") == 1
            [row] = json.loads(daemon.cli("ps", "--json").stdout)
            assert (row["id"], row["nice"], row["state"] != "suspended") == ("here", 0, True)
            assert daemon.get("/v1/policy").json() == policy
        finally:
            commander.ask("kill", ids=["here"])


def test_what_is_no_command_gets_an_answer_as_well(commander: Commander) -> None:
    for payload in (b"{", b"[]", b'{"command": 3}', b'{"command": "kill", "ids": ["x"], "more": 1}', b"\xff"):
        assert commander.send(payload)["error"]["code"] == "invalid_request"


def test_keys_rule_http_mqtt_and_the_command_line(home: Path) -> None:
    secrets = {
        user: cli(home, "keys", "add", user, "--rights", rights).stdout.strip()
        for user, rights in (("ann", "own"), ("bob", "own"), ("root", "admin"))
    }
    with (
        started(home, "--host", "0.0.0.0") as daemon,
        Commander(daemon.mqtt_port, NODE) as commander,
        streaming(daemon, "anns", secrets["ann"], user="root"),
    ):
        assert httpx.get(f"{daemon.url}/v1/requests", timeout=30).status_code == 401
        assert commander.ask("ps")["error"]["code"] == "invalid_api_key"
        assert commander.ask("kill", ids=["anns"])["error"]["code"] == "invalid_api_key"
        assert daemon.cli("kill", "anns").returncode == 2
        bearer = {"Authorization": f"Bearer {secrets['bob']}"}
        refused = httpx.delete(f"{daemon.url}/v1/requests/anns", headers=bearer, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert commander.ask("kill", ids=["anns"], key=secrets["bob"])["error"]["code"] == "forbidden"
        run = daemon.cli("kill", "anns", key=secrets["bob"])
        assert run.returncode == 2 and "another user's" in run.stderr
        [row] = json.loads(daemon.cli("ps", "--json", key=secrets["bob"]).stdout)
        assert (row["id"], row["user"], row["label"]) == ("anns", "ann", "")
        killed = commander.ask("kill", user="ann", key=secrets["root"])
        assert [row["state"] for row in killed["requests"]] == ["cancelled"]
        assert commander.ask("policy", policy="fair", key=secrets["ann"])["error"]["code"] == "forbidden"
        assert commander.ask("policy", policy="fair", key=secrets["root"])["error"] is None
        assert daemon.cli("policy", key=secrets["ann"]).stdout.split()[1] == "fair"


def test_no_host_is_opened_to_others_without_keys(home: Path) -> None:
    run = cli(home, "start", "--host", "0.0.0.0", "--port", "0", "--mqtt-port", "0")
    assert run.returncode == 2
    assert "llmosd keys add" in run.stderr.splitlines()[-1]


def test_a_read_only_daemon(home: Path) -> None:
    with (
        started(home, "--readonly") as daemon,
        Commander(daemon.mqtt_port, NODE) as commander,
        streaming(daemon, "here", max_tokens=300),
    ):
        assert "read-only" in commander.ask("kill", ids=["here"])["error"]["message"]
        assert "read-only" in daemon.cli("kill", "here").stderr
        assert daemon.cli("ps").returncode == 0
        assert daemon.cli("wait", "here").stdout == "here finished\n"
