"""The command line against a started daemon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
from started import MODEL, Daemon, cli, eventually

PROMPT = [1, 4093, 198]  # any three tokens


def test_status_names_what_others_rely_on(daemon: Daemon) -> None:
    status = json.loads(daemon.cli("status", "--json").stdout)
    assert status.keys() >= {"state", "http", "mqtt", "db", "model", "backend", "pid"}
    assert (status["state"], status["model"], status["pid"]) == ("serving", MODEL, daemon.process.pid)


def test_run_streams_an_answer_and_says_how_fast(daemon: Daemon) -> None:
    run = daemon.cli("run", "Name the capital of France.", "--temperature", "0", "--max-tokens", "12")
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert "tokens/s" in run.stderr and "\x1b" not in run.stderr


def test_run_takes_a_prompt_from_a_pipe(daemon: Daemon) -> None:
    run = daemon.cli("run", "--temperature", "0", "--max-tokens", "12", stdin="Name the capital of France.")
    assert "Paris" in run.stdout


def test_a_long_request_is_seen_reniced_and_killed(daemon: Daemon) -> None:
    with daemon.client() as client:
        stream = client.chat_stream([{"role": "user", "content": "Count."}], MODEL, max_tokens=4000, ignore_eos=True)
        next(stream)
        (row,) = json.loads(daemon.cli("ps", "--json").stdout)
        assert (row["state"], row["nice"], row["max_tokens"]) == ("decode", 0, 4000)
        assert row["id"] in daemon.cli("ps").stdout
        assert daemon.cli("nice", "5", row["id"][:12]).stdout == f"{row['id']} nice 5\n"
        assert daemon.cli("suspend", row["id"][:12]).stdout == f"{row['id']} suspended\n"
        (held,) = json.loads(daemon.cli("ps", "--json").stdout)
        assert (held["state"], held["pages"]) == ("suspended", 0)
        resumed = daemon.cli("resume", row["id"]).stdout
        assert resumed in (f"{row['id']} preempted\n", f"{row['id']} swapped\n"), "as its pages were kept"
        eventually(lambda: _tokens(daemon) > held["completion_tokens"], "it goes on")
        killed = daemon.cli("kill", row["id"])
        assert killed.stdout == f"{row['id']} cancelled\n"
    assert json.loads(daemon.cli("ps", "--json").stdout) == []
    eventually(lambda: daemon.pages_used() == 0, "its pages are free")


def test_once_idle_it_leaves_the_processors_alone(daemon: Daemon) -> None:
    """A thread that went on spinning would take a whole core; bench/streaming.py --idle measures how little is left."""
    main = psutil.Process(daemon.process.pid)

    def used() -> float:
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def rests() -> bool:
        began, before = time.monotonic(), used()
        time.sleep(1)
        return used() - before < 0.25 * (time.monotonic() - began)

    assert daemon.cli("run", "Count to five.", "--max-tokens", "16").returncode == 0
    eventually(rests, "a second with little work")


def test_memory_is_shown(daemon: Daemon) -> None:
    found = json.loads(daemon.cli("mem", "--json").stdout)
    [pool] = found["pools"]
    sizes = {segment["kind"]: segment["bytes"] for segment in found["segments"]}
    assert sizes["weights"] > 50e6 and sizes["pool"] == pool["pages"]["total"] * pool["page_bytes"]
    assert f"pool of {MODEL}" in daemon.cli("mem").stdout


def _tokens(daemon: Daemon) -> int:
    (row,) = json.loads(daemon.cli("ps", "--json").stdout)
    return int(row["completion_tokens"])


def test_a_request_that_is_not_there(daemon: Daemon) -> None:
    killed = daemon.cli("kill", "nobody")
    assert killed.returncode == 2
    assert "nobody" in killed.stderr and killed.stderr.count("\n") == 1


def test_a_second_start_says_where_the_first_one_is(daemon: Daemon) -> None:
    again = daemon.cli("start", "--port", "0")
    assert again.returncode == 2
    assert f"pid {daemon.process.pid} at {daemon.url}" in again.stderr


def test_a_taken_port_is_named(daemon: Daemon, home: Path) -> None:
    port = daemon.url.rsplit(":", 1)[1]
    second = cli(home, "start", "--port", port)
    assert second.returncode == 2
    assert f"port {port}" in second.stderr and "--port" in second.stderr


def test_doctor_finds_nothing_wrong(daemon: Daemon) -> None:
    findings = json.loads(daemon.cli("doctor", "--json").stdout)
    assert {finding["check"] for finding in findings} >= {
        "python",
        "onnxruntime",
        "native operators",
        "model",
        "daemon",
    }
    assert [finding for finding in findings if finding["state"] == "problem"] == []


def test_models_are_listed_shown_and_checked(daemon: Daemon) -> None:
    (listed,) = json.loads(daemon.cli("models", "list", "--json").stdout)
    assert (listed["id"], listed["installed"]) == (MODEL, True)
    assert json.loads(daemon.cli("models", "show", MODEL, "--json").stdout)["licence"] == "Apache-2.0"
    checked = daemon.cli("models", "check", MODEL, "--tokens", "1022", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["id"] == MODEL


def test_start_detached_then_stop(home: Path) -> None:
    begun = cli(home, "start", "--detach", "--port", "0", "--mqtt-port", "0", "--slots", "4")
    assert begun.returncode == 0, begun.stderr
    assert cli(home, "status").returncode == 0
    stopped = cli(home, "stop")
    assert (stopped.returncode, stopped.stdout[:8]) == (0, "stopped,")
    assert json.loads(cli(home, "status", "--json").stdout)["state"] == "stopped"
    assert cli(home, "status").returncode == 3
