"""Half an hour of mixed load through HTTP: does a daemon stay as fast and as small as it was?

Clients send prompts of random length one after the other, greedy and sampled, streamed and not; some hang up in the
middle; every minute there is a burst. The pool is small enough for preemption. Memory is read every second. A step's
time is a second over the steps in it (the engine is never idle), and its trend is that of a regression on the prompt
tokens, generated tokens and pages of the step, over bins of ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from facts import machine_facts
from load import frames_since
from servers import Server, llmosd

from llmosd.config import default_home
from llmosd.runtime.quality import student_95

CLIENTS, BURST, BURST_EVERY_S, PAGES = 10, 40, 60, 200
BIN_S, WARM_UP = 10, 0.1  # share of the time that is left out of trends
LOSS, GROWTH = 0.03, 0.02  # what is still no trend, of step time and of memory over the whole soak
WIDEST = 0.1  # an interval wider than this, to either side, says nothing


@dataclass(slots=True)
class Tally:
    sent: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # by how
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trend:
    """A change over the whole soak as a share of the mean, with its 95 % interval."""

    mean: float
    change: float
    low: float
    high: float


# ---------------------------------------------------------------- load


async def client(http: httpx.AsyncClient, model: str, draw: random.Random, end: float, tally: Tally) -> None:
    while time.monotonic() < end:
        await request(http, model, draw, tally)


async def bursts(http: httpx.AsyncClient, model: str, draw: random.Random, end: float, tally: Tally) -> None:
    while time.monotonic() + BURST_EVERY_S < end:
        await asyncio.sleep(BURST_EVERY_S / 2)
        await asyncio.gather(*(request(http, model, draw, tally) for _ in range(BURST)))
        await asyncio.sleep(BURST_EVERY_S / 2)


async def request(http: httpx.AsyncClient, model: str, draw: random.Random, tally: Tally) -> None:
    body: dict[str, Any] = {
        "model": model,
        "prompt": [draw.randrange(1000, 40000) for _ in range(draw.randint(1, 400))],
        "max_tokens": draw.randint(1, 200),
        "ignore_eos": draw.random() < 0.5,
        "temperature": 0 if draw.random() < 0.5 else 0.9,
        "stream": draw.random() < 0.8,
    }
    if body["temperature"]:
        body |= {"top_p": 0.95, "presence_penalty": 0.2, "logprobs": 3, "seed": draw.randrange(1000)}
    patience = draw.randint(1, 60) if draw.random() < 0.15 else None  # pieces until the client hangs up
    tally.sent += 1
    try:
        tally.ended[await _follow(http, body, patience)] += 1
    except (httpx.HTTPError, ValueError) as error:
        tally.errors.append(repr(error))


async def _follow(http: httpx.AsyncClient, body: dict[str, Any], patience: int | None) -> str:
    """How the answer ended. Raises HTTPError or ValueError where it did so wrongly."""
    finish, pieces = None, 0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        if not body["stream"]:
            finish = json.loads(await response.aread())["choices"][0]["finish_reason"]
        response.raise_for_status()
        async for line in response.aiter_lines() if body["stream"] else _nothing():
            if line.startswith("data: {"):
                finish, pieces = json.loads(line[6:])["choices"][0].get("finish_reason") or finish, pieces + 1
            if pieces == patience:
                return "hung up"
    if finish not in ("stop", "length"):
        raise ValueError(f"finished by {finish}")
    return str(finish)


async def _nothing() -> Any:
    return
    yield


async def watch(pid: int, end: float, memory: list[int]) -> None:
    process = psutil.Process(pid)
    while time.monotonic() < end:
        memory.append(process.memory_info().rss)
        if len(memory) % 60 == 0:
            print(f"{len(memory):5} s  {memory[-1] / 1e6:.1f} MB", flush=True)
        await asyncio.sleep(1)


async def soak(server: Server, minutes: float, tally: Tally, memory: list[int]) -> None:
    end = time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits, trust_env=False) as http:
        clients = [client(http, server.model, random.Random(number), end, tally) for number in range(CLIENTS)]
        storm = bursts(http, server.model, random.Random(-1), end, tally)
        await asyncio.gather(*clients, storm, watch(server.pid, end, memory))


# ---------------------------------------------------------------- trends


def step_times(frames: list[dict[str, Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each bin: (milliseconds a step, [prompt tokens, generated tokens, pages in use] a step or mean)."""
    rows = []
    for start in range(0, len(frames) - BIN_S, BIN_S):
        first, last = frames[start], frames[start + BIN_S]
        steps = last["step"]["total"] - first["step"]["total"]
        fed, made = (
            last["throughput"][f"{kind}_tokens_total"] - first["throughput"][f"{kind}_tokens_total"]
            for kind in ("prompt", "generated")
        )
        pages = sum(frame["pages"]["used"] for frame in frames[start : start + BIN_S]) / BIN_S
        rows.append((1e3 * (last["at"] - first["at"]) / steps, fed / steps, made / steps, pages))
    table = np.array(rows)
    return table[:, 0], table[:, 1:]


def trend(values: np.ndarray[Any, Any], explained: np.ndarray[Any, Any] | None = None) -> Trend:
    """Least squares on time and on what else explains the values; neighbours' correlation widens the interval."""
    values = values[round(len(values) * WARM_UP) :]
    columns = [np.ones(len(values)), np.linspace(-0.5, 0.5, len(values))]
    if explained is not None:
        columns += list(explained[-len(values) :].T)
    design = np.stack(columns, axis=1)
    found, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest = values - design @ found
    freedom = len(values) - design.shape[1]
    repeat = float(np.clip(np.corrcoef(rest[:-1], rest[1:])[0, 1], 0, 0.99))
    variance = rest @ rest / freedom * np.linalg.inv(design.T @ design)[1, 1] * (1 + repeat) / (1 - repeat)
    half = student_95(max(1, round(freedom * (1 - repeat) / (1 + repeat)))) * math.sqrt(variance)
    mean = float(values.mean())
    return Trend(mean, found[1] / mean, (found[1] - half) / mean, (found[1] + half) / mean)


def verdicts(tally: Tally, speed: Trend, memory: Trend) -> dict[str, str]:
    """`yes`, `no` or `unresolved`. Memory's interval is wide, for seconds depend on each other: no excuse."""
    steady = speed.low <= 0 <= speed.high or speed.change < LOSS
    return {
        "no error": _said(not tally.errors and tally.sent == sum(tally.ended.values())),
        "step time has no trend": _said(steady) if speed.high - speed.low <= 2 * WIDEST else "unresolved",
        "memory is flat": _said(memory.change < GROWTH),
    }


def _said(holds: bool) -> str:
    return "yes" if holds else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    facts, tally, memory = machine_facts(), Tally(), list[int]()
    with llmosd(options.home / "models", "--pages", str(PAGES)) as server:
        began = time.time()
        asyncio.run(soak(server, options.minutes, tally, memory))
        database = Path(httpx.get(f"{server.url}/v1/status", trust_env=False).json()["db"])
        frames = frames_since(database, began)
    speed, size = trend(*step_times(frames)), trend(np.array(memory, float))
    found = verdicts(tally, speed, size)
    print(f"{tally.sent} requests: {dict(tally.ended)}, errors {len(tally.errors)} {tally.errors[:3]}")
    for name, one, unit, scale in (("step", speed, "ms", 1.0), ("memory", size, "MB", 1e-6)):
        print(f"{name}: mean {one.mean * scale:.1f} {unit}, change {one.change:+.2%} [{one.low:+.2%}, {one.high:+.2%}]")
    print(", ".join(f"{claim}: {word}" for claim, word in found.items()))
    if options.json:
        report = {
            "machine": asdict(facts),
            "minutes": options.minutes,
            "tally": asdict(tally),
            "step_ms": asdict(speed),
            "memory_bytes": asdict(size),
            "verdicts": found,
            "rss_by_second": memory,
        }
        options.json.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
