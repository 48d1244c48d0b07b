"""Two models of different page sizes on one real daemon, under a memory budget that holds one and a half."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from started import MODEL, PATIENCE_S, Daemon, cli, eventually, started

from llmosd.runtime import native

OTHER = "other"
GEOMETRY = ["--layers", "10", "--hidden", "1024", "--heads", "16", "--kv-heads", "4", "--head-dim", "64"]
GEOMETRY += ["--ff", "3072", "--vocab", "8192", "--context", "1024", "--page-tokens", "16"]
CLIENTS, TURNS = 4, 6

pytestmark = pytest.mark.skipif(not native.status().available, reason="the native operators cannot be built here")


@pytest.fixture
def home(tmp_path: Path, model_home: Path) -> Path:
    """A store of its own with both models: the real one by reference, a synthetic one made as anybody would."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / MODEL).symlink_to(model_home / "models" / MODEL)
    made = cli(home, "models", "synth", OTHER, *GEOMETRY)
    assert made.returncode == 0, made.stderr
    return home


def ask(daemon: Daemon, model: str, turn: int) -> str:
    body = {"model": model, "prompt": f"Question {turn}: " + "why " * 40, "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body | {"ignore_eos": True}, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    assert (shown["model"], shown["usage"]["completion_tokens"]) == (model, 24)
    return str(shown["choices"][0]["text"])


def memory(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.get("/v1/memory").json()
    assert found["free"] + sum(segment["bytes"] for segment in found["segments"]) == found["budget"]
    return found


@contextmanager
def peak_memory(daemon: Daemon) -> Iterator[list[int]]:
    """The most resident bytes that the daemon had inside the block, once it is left."""
    peak, over, process = [0], threading.Event(), psutil.Process(daemon.process.pid)

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def test_two_models_alternate_in_memory_for_one_and_a_half(home: Path) -> None:
    turns = [
        ((MODEL, OTHER)[(client + turn) % 2], client * TURNS + turn)
        for client in range(CLIENTS)
        for turn in range(TURNS)
    ]
    with started(home, "--strict", "--swap", "0") as daemon:
        expected = [ask(daemon, model, turn) for model, turn in turns]
        found = memory(daemon)
        assert {model["model"]: model["loads"] for model in found["models"]} == {MODEL: 0, OTHER: 1}
        pages = {pool["model"]: pool["page_tokens"] for pool in found["pools"]}
        assert pages[OTHER] == 16 != pages[MODEL]
        fixed = {
            name: sum(s["bytes"] for s in found["segments"] if s["owner"] == name and s["kind"] != "pool")
            for name in ("", MODEL, OTHER)
        }

    budget = int(fixed[""] + fixed[MODEL] + fixed[OTHER] / 2)
    with started(home, "--strict", "--swap", "0", "--memory", str(budget), "--pages", "64") as daemon:
        assert [card["resident"] for card in daemon.get("/v1/models").json()["data"]] == [True, False]
        with peak_memory(daemon) as peak, ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(lambda turn: ask(daemon, *turn), turns))
            for turn in range(4):  # each has to wait for its model
                assert ask(daemon, *turns[turn]) == expected[turn]
        assert answers == expected
        assert peak[0] <= 1.1 * budget
        found = memory(daemon)
        loads = sum(model["loads"] for model in found["models"])
        unloads = sum(model["unloads"] for model in found["models"])
        assert loads == unloads >= 4
        assert all(model["load_s"] > 0 and model["unload_s"] > 0 for model in found["models"])
        assert sum(model["resident"] for model in found["models"]) == 1
        eventually(lambda: daemon.metric("llmos_model_loads_total", model_name=OTHER) > 0, "the metrics know it")
        events = daemon.cli("query", "events", "--json").stdout
        assert "model.loaded" in events and "model.unloaded" in events
        shown = daemon.cli("mem").stdout
        assert "not loaded" in shown and "weights" in shown
        missing = httpx.post(f"{daemon.url}/v1/completions", json={"model": "third", "prompt": "x"}, timeout=30)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert "Traceback" not in daemon.log


def test_an_idle_model_leaves_when_its_time_is_over(home: Path) -> None:
    with started(home, "--swap", "0", "--keep-alive", "1") as daemon:

        def lives() -> dict[str, tuple[int, int]]:
            return {model["model"]: (model["loads"], model["unloads"]) for model in memory(daemon)["models"]}

        assert daemon.cli("models", "load", OTHER).stdout == f"{OTHER} is loaded\n"
        eventually(lambda: lives()[OTHER] == (1, 1), "the other model is unloaded")
        assert lives()[MODEL] == (0, 0), "the default model stays"
        ask(daemon, OTHER, 1)
