"""Half an hour of mixed load through HTTP: does a daemon stay as fast and as small as it was?

Clients send prompts of random length one after the other, greedy and sampled, streamed and not; some hang up in the
middle; every minute there is a burst. The pool is small enough for preemption. Every second the daemon's memory (its
broker's included) and its totals are read. A step's time is that of ten seconds' steps on average; their prompt tokens,
recomputed ones included, generated tokens and pages in use explain it, and the rest may have a trend (`trends.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from facts import machine_facts
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, llmosd
from trends import Trend, trend

from llmosd.application import query
from llmosd.config import default_home

CLIENTS, BURST, BURST_EVERY_S, PAGES = 10, 40, 60, 200
BIN_S, WARM_UP = 10, 0.1  # share of the time that is left out of the trend of step time
FILLING = 1 / 3  # and of that of memory: the pool fills up, and the daemon remembers the last 1,000 requests
LOSS, GROWTH = 0.03, 0.02  # what is still no trend, of step time and of memory
WIDEST = 0.1  # an interval wider than this, to either side, does not say that there is none
FEWEST, SHORTEST = 4, 15  # minutes: for any trend, and for one of memory
TOTALS = {
    "steps": "llmos_step_seconds_count",
    "seconds": "llmos_step_seconds_sum",
    "fed": "llmos_prefill_tokens_total",
    "generated": "vllm:generation_tokens_total",
    "pages": "llmos_pages_used",
}
LOSSES = ("llmos_rows_lost_total", "llmos_telemetry_gaps_total", "llmos_swap_failures_total")


@dataclass(slots=True)
class Tally:
    sent: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # by how
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals since the start, but for pages in use and bytes of memory."""

    steps: float
    seconds: float
    fed: float
    generated: float
    pages: float
    memory: int


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
    except (httpx.HTTPError, ValueError, LookupError) as error:
        tally.errors.append(repr(error))
        await asyncio.sleep(1)  # a daemon that is gone would be asked without end


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


async def watch(http: httpx.AsyncClient, pid: int, end: float, samples: list[Sample]) -> None:
    daemon = psutil.Process(pid)
    while time.monotonic() < end:
        samples.append(await read(http, daemon))
        if len(samples) % 60 == 0:
            print(f"{len(samples):5} s  {samples[-1].memory / 1e6:.1f} MB", flush=True)
        await asyncio.sleep(1)


async def read(http: httpx.AsyncClient, daemon: psutil.Process) -> Sample:
    memory = sum(one.memory_info().rss for one in (daemon, *daemon.children(recursive=True)))
    values = metrics((await http.get("/metrics")).text)
    return Sample(**{name: values[metric] for name, metric in TOTALS.items()}, memory=memory)


def metrics(text: str) -> dict[str, float]:
    """By name, whatever the labels."""
    values = Counter[str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] += sample.value
    return dict(values)


async def soak(server: Server, minutes: float, tally: Tally, samples: list[Sample]) -> None:
    end = time.monotonic() + 60 * minutes
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits, trust_env=False) as http:
        clients = [client(http, server.model, random.Random(number), end, tally) for number in range(CLIENTS)]
        storm = bursts(http, server.model, random.Random(-1), end, tally)
        await asyncio.gather(*clients, storm, watch(http, server.pid, end, samples))


def complaints(server: Server) -> Iterator[str]:
    """What the daemon itself says went wrong."""
    values = metrics(httpx.get(f"{server.url}/metrics", trust_env=False).text)
    yield from (f"{name} is {values[name]:g}" for name in LOSSES if values.get(name))
    database = Path(httpx.get(f"{server.url}/v1/status", trust_env=False).json()["db"])
    yield from (text for (text,) in query.sql(database, "SELECT text FROM events WHERE severity = 'error'").rows)


# ---------------------------------------------------------------- trends


def step_times(samples: list[Sample]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each bin: (milliseconds a step, [prompt tokens, generated tokens, pages in use] a step or mean)."""
    rows = []
    for start in range(0, len(samples) - BIN_S, BIN_S):
        first, last = samples[start], samples[start + BIN_S]
        steps = last.steps - first.steps
        pages = sum(sample.pages for sample in samples[start : start + BIN_S]) / BIN_S
        fed, generated = last.fed - first.fed, last.generated - first.generated
        rows.append((1e3 * (last.seconds - first.seconds) / steps, fed / steps, generated / steps, pages))
    table = np.array(rows)[round(len(rows) * WARM_UP) :]
    return table[:, 0], table[:, 1:]


def verdicts(tally: Tally, speed: Trend, memory: Trend, minutes: float) -> dict[str, str]:
    """`yes`, `no` or `unresolved`."""
    steady = speed.low <= 0 <= speed.high or speed.change < LOSS
    narrow = speed.high - speed.low <= 2 * WIDEST
    flat = _said(memory.change < GROWTH)
    return {
        "no error": _said(not tally.errors and tally.sent == sum(tally.ended.values())),
        "step time has no trend": _said(steady) if narrow or not steady else "unresolved",
        "memory is flat": flat if minutes >= SHORTEST else "unresolved",
    }


def _said(holds: bool) -> str:
    return "yes" if holds else "no"


def result(tally: Tally, samples: list[Sample], minutes: float) -> dict[str, Any]:
    """All that goes into the file."""
    bins, memory = step_times(samples), np.array([sample.memory for sample in samples], float)
    speed, size = trend(*bins), trend(memory[round(len(memory) * FILLING) :])
    return {
        "minutes": minutes,
        "sent": tally.sent,
        "ended": dict(tally.ended),
        "errors": tally.errors,
        "step_ms": asdict(speed),
        "memory_bytes": asdict(size),
        "verdicts": verdicts(tally, speed, size, minutes),
        "bins": np.column_stack(bins)
        .round(3)
        .tolist(),  # milliseconds a step and what explains them, after the warm-up
        "memory_every_10_s": [sample.memory for sample in samples[::10]],
    }


def show(found: dict[str, Any]) -> None:
    print(f"{found['sent']} requests: {found['ended']}, errors {len(found['errors'])} {found['errors'][:3]}")
    for name, unit, scale in (("step_ms", "ms", 1.0), ("memory_bytes", "MB", 1e-6)):
        mean, change, low, high = found[name].values()
        print(f"{name.split('_')[0]}: mean {mean * scale:.1f} {unit}, change {change:+.2%} [{low:+.2%}, {high:+.2%}]")
    print(", ".join(f"{claim}: {word}" for claim, word in found["verdicts"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.minutes < FEWEST:
        parser.error(f"less than {FEWEST} minutes hold too few steps for a trend")
    facts, tally, samples = machine_facts(), Tally(), list[Sample]()
    with llmosd(options.home / "models", "--pages", str(PAGES)) as server:
        asyncio.run(soak(server, options.minutes, tally, samples))
        tally.errors += complaints(server)
    found = result(tally, samples, options.minutes)
    show(found)
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(facts), **found}) + "\n")


if __name__ == "__main__":
    main()
