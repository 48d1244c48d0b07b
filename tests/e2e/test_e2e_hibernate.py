"""Half-done generations on the real model, hibernated, the daemon killed, another one started: nobody can tell."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from started import MODEL, PATIENCE_S, Daemon, eventually, make_home, started

from llmosd.types import ENDED

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TELL = [{"role": "user", "content": "Tell me a long story about a lighthouse and its keeper."}]
COUNT = [{"role": "user", "content": "Count from one to two hundred in words."}]
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 11, "max_tokens": 200, "ignore_eos": True}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": (CHAT, {"messages": TELL, **GREEDY}),
    "greedy-text": (COMPLETIONS, {"prompt": "The old harbour town", **GREEDY}),
    "sampled": (CHAT, {"messages": TELL, **SAMPLED}),
    "sampled-cut": (CHAT, {"messages": TELL, **SAMPLED, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "seed": 5}),
    "penalised": (CHAT, {"messages": COUNT, **SAMPLED, "frequency_penalty": 0.7, "presence_penalty": 0.4}),
    "repetition": (CHAT, {"messages": COUNT, **GREEDY, "repetition_penalty": 1.2}),
    "two": (CHAT, {"messages": TELL, **SAMPLED, "n": 2, "seed": 3}),
    "stops": (CHAT, {"messages": COUNT, **GREEDY, "stop": ["one hundred", "qqq", "nnn"], "logprobs": True}),
}


def texts(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """(text, finish reason) by choice, of either endpoint."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    return [(c["text"] if "text" in c else c["message"]["content"], c["finish_reason"]) for c in choices]


def ask(daemon: Daemon, id: str) -> dict[str, Any]:
    endpoint, fields = ASKED[id]
    headers = {"X-Request-Id": id}
    answer = httpx.post(daemon.url + endpoint, json={"model": MODEL, **fields}, headers=headers, timeout=PATIENCE_S)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def ask_in_vain(daemon: Daemon, id: str) -> None:
    with suppress(httpx.HTTPError):
        ask(daemon, id)


def show(daemon: Daemon, id: str) -> dict[str, Any]:
    shown: dict[str, Any] = daemon.get(f"/v1/requests/{id}").json()
    return shown


def streamed(daemon: Daemon, id: str, start: str) -> list[str]:
    made: dict[int, str] = {}
    for line in daemon.get(f"/v1/requests/{id}/stream?from={start}").text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                made[choice["index"]] = made.get(choice["index"], "") + choice["text"]
    return [made[index] for index in sorted(made)]


@pytest.fixture
def uninterrupted(home: Path) -> dict[str, list[tuple[str, str]]]:
    with started(home, "--strict") as daemon, ThreadPoolExecutor(len(ASKED)) as clients:
        return {id: texts(answer) for id, answer in zip(ASKED, clients.map(partial(ask, daemon), ASKED), strict=True)}


def test_hibernated_generations_survive_kill_9(home: Path, uninterrupted: dict[str, list[tuple[str, str]]]) -> None:
    with started(home, "--strict") as daemon:
        clients = [threading.Thread(target=ask_in_vain, args=(daemon, id)) for id in ASKED]
        for client in clients:
            client.start()
        eventually(lambda: all_half_done(daemon), "all are half done")
        assert httpx.post(f"{daemon.url}/v1/hibernate", timeout=PATIENCE_S).status_code == 200
        hibernated = daemon.cli("hibernate")  # once more, as a person would: slower, and changes nothing
        assert sorted(hibernated.stdout.splitlines()) == sorted(f"{id} hibernated" for id in ASKED), hibernated.stderr
        so_far = {id: show(daemon, id) for id in ASKED}
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        for client in clients:
            client.join()
    left = {path.name for path in (home / "hibernated").iterdir()}
    assert left >= {f"{id}.image" for id in ASKED}

    with started(home, "--strict") as daemon:
        after = {id: show(daemon, id) for id in ASKED}
        assert {id: row["created_at"] for id, row in after.items()} == {id: so_far[id]["created_at"] for id in ASKED}
        read = {id: streamed(daemon, id, lengths(so_far[id])) for id in ASKED}
        for id, expected in uninterrupted.items():
            begun = [choice["text"] for choice in so_far[id]["choices"]]
            assert [a + b for a, b in zip(begun, read[id], strict=True)] == [text for text, _ in expected], id
            final = show(daemon, id)
            assert (final["state"], texts(final)) == ("finished", expected), id
            assert final["total_ms"] > so_far[id]["total_ms"]
        eventually(lambda: not list((home / "hibernated").iterdir()), "what was fetched is deleted")
        assert "Traceback" not in daemon.log


def all_half_done(daemon: Daemon) -> bool:
    """Those that are far ahead, as their clients were quicker, do not wait for the others."""
    found = rows(daemon)
    for row in found:
        if row["completion_tokens"] > 100 and row["state"] != "suspended":
            hibernate(daemon, row["id"])
    return all(row["completion_tokens"] > 20 for row in found)


def hibernate(daemon: Daemon, id: str) -> None:
    httpx.post(f"{daemon.url}/v1/requests/{id}/hibernate", timeout=PATIENCE_S).raise_for_status()


def rows(daemon: Daemon) -> list[dict[str, Any]]:
    found = {row["id"]: row for row in daemon.get("/v1/requests").json()["data"]}
    assert not any(row["state"] in ENDED for row in found.values()), "it ended before it could be hibernated"
    return [found.get(id, {"completion_tokens": 0}) for id in ASKED]


def lengths(shown: dict[str, Any]) -> str:
    return ",".join(str(len(choice["text"])) for choice in shown["choices"])


def test_a_suspended_request_waits_through_a_stop(home: Path) -> None:
    with started(home, "--strict") as daemon:
        whole = texts(ask(daemon, "greedy"))
    with started(home, "--strict") as daemon:
        client = threading.Thread(target=ask_in_vain, args=(daemon, "greedy"))
        client.start()
        eventually(lambda: any(row["completion_tokens"] > 20 for row in rows(daemon)), "it is half done")
        httpx.post(f"{daemon.url}/v1/requests/greedy/suspend", timeout=PATIENCE_S).raise_for_status()
        daemon.signal(signal.SIGTERM)
        daemon.wait()
        client.join()
    with started(home, "--strict") as daemon:
        assert show(daemon, "greedy")["state"] == "suspended"
        assert daemon.cli("resume", "greedy").returncode == 0
        assert streamed(daemon, "greedy", "0") == [whole[0][0]]


LONG = {"model": MODEL, "prompt": "The sea is wide. " * 120, **SAMPLED}


def ask_long(daemon: Daemon) -> None:
    with suppress(httpx.HTTPError):
        httpx.post(daemon.url + COMPLETIONS, json=LONG, headers={"X-Request-Id": "long"}, timeout=PATIENCE_S)


def test_k_and_v_are_read_back_where_they_are_whole(home: Path, tmp_path: Path, model_home: Path) -> None:
    with started(home, "--strict", "--page-tokens", "32") as daemon:
        answer = httpx.post(daemon.url + COMPLETIONS, json=LONG, timeout=PATIENCE_S).json()
        client = threading.Thread(target=ask_long, args=(daemon,))
        client.start()
        eventually(lambda: tokens(daemon, "long") > 10, "it is half done")
        hibernate(daemon, "long")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        client.join()
    (tmp_path / "damaged").mkdir()
    damaged = make_home(tmp_path / "damaged", model_home)
    shutil.copytree(home / "hibernated", damaged / "hibernated")
    pages = damaged / "hibernated" / "long.pages"
    whole = bytearray(pages.read_bytes())
    whole[len(whole) // 2] ^= 4
    pages.write_bytes(whole)
    for place, most in ((home, 33), (damaged, 10**6)):
        with started(place, "--strict", "--page-tokens", "32") as daemon:
            assert streamed(daemon, "long", "0") == [texts(answer)[0][0]]
            prefilled = daemon.metric("llmos_prefill_tokens_total")
            assert prefilled <= most and (prefilled > 400) == (place is damaged)


def tokens(daemon: Daemon, id: str) -> int:
    found = [row["completion_tokens"] for row in daemon.get("/v1/requests").json()["data"] if row["id"] == id]
    return int(found[0]) if found else 0
