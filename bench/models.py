"""Two models on one daemon: what it costs when memory holds one and a half, beside memory for both and each alone.

The second model is a synthetic one of another geometry and page size. `alternating`: four clients that never pause,
each asking one model, then the other; `crowds`: four clients that ask one model and four that ask the other. Prompts
have about 85 tokens, answers 32. Loads and unloads are counted and timed by the daemon; its memory is looked at every
10 ms.

    python bench/models.py [--seconds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psutil
from facts import machine_facts
from servers import Server, llmosd

from llmosd.config import default_home

OTHER = "other"
GEOMETRY = "--layers 10 --hidden 1024 --heads 16 --kv-heads 4 --head-dim 64 --ff 3072 --vocab 8192 --context 1024"
ANSWER, PAGES = 32, 64
FLAGS = ("--pages", str(PAGES), "--swap", "0")


@dataclass(frozen=True, slots=True)
class Served:
    """Latencies and times of a load or unload are in seconds; bytes of memory at the most, and allowed."""

    requests: int
    tokens_per_s: dict[str, float]
    latency_p50: float
    latency_max: float
    loads: int
    unloads: int
    load_s: float
    unload_s: float
    peak: int
    budget: int

    @property
    def total(self) -> float:
        return sum(self.tokens_per_s.values())


class Load:
    """Clients that ask again as soon as they are answered, each its models in turn."""

    def __init__(self, server: Server, clients: Sequence[Sequence[str]], seconds: float) -> None:
        self._server, self._clients, self._seconds = server, clients, seconds
        self._over, self._peak = threading.Event(), 0
        self._answers: list[tuple[str, float]] = []

    def run(self) -> Served:
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        before, began = self._memory(), time.perf_counter()
        with ThreadPoolExecutor(len(self._clients)) as pool:
            list(pool.map(partial(self._ask, began + self._seconds), *zip(*enumerate(self._clients), strict=True)))
        took, after = time.perf_counter() - began, self._memory()
        self._over.set()
        watcher.join()
        changed = {
            key: sum(model[key] for model in after["models"]) - sum(model[key] for model in before["models"])
            for key in ("loads", "unloads", "load_s", "unload_s")
        }
        latencies = [latency for _, latency in self._answers]
        models = sorted({model for model, _ in self._answers})
        return Served(
            requests=len(latencies),
            tokens_per_s={name: ANSWER * sum(name == model for model, _ in self._answers) / took for name in models},
            latency_p50=statistics.median(latencies),
            latency_max=max(latencies),
            loads=changed["loads"],
            unloads=changed["unloads"],
            load_s=changed["load_s"] / max(1, changed["loads"]),
            unload_s=changed["unload_s"] / max(1, changed["unloads"]),
            peak=self._peak,
            budget=after["budget"],
        )

    def _ask(self, until: float, number: int, models: Sequence[str]) -> None:
        with httpx.Client(base_url=self._server.url, trust_env=False, timeout=None) as http:
            for turn, model in enumerate(cycle(models)):
                if (asked := time.perf_counter()) > until:
                    break
                body = {"model": model, "prompt": f"{number} {turn} " + "why " * 80, "max_tokens": ANSWER}
                http.post("/v1/completions", json=body | {"ignore_eos": True}).raise_for_status()
                self._answers.append((model, time.perf_counter() - asked))

    def _memory(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self._server.url}/v1/memory", trust_env=False).json()
        return found

    def _watch(self) -> None:
        process = psutil.Process(self._server.pid)
        while not self._over.wait(0.01):
            self._peak = max(self._peak, process.memory_info().rss)


def one_and_a_half(models: Path, model: str) -> int:
    """Bytes that the daemon, its default model and half the other take, without their pages."""
    with llmosd(models, *FLAGS) as server:
        httpx.post(f"{server.url}/v1/models/{OTHER}/load", trust_env=False, timeout=None).raise_for_status()
        segments = httpx.get(f"{server.url}/v1/memory", trust_env=False).json()["segments"]
    fixed = [segment for segment in segments if segment["kind"] != "pool"]
    size = {owner: sum(s["bytes"] for s in fixed if s["owner"] == owner) for owner in ("", model, OTHER)}
    return int(size[""] + size[model] + size[OTHER] / 2)


def measure(models: Path, model: str, seconds: float) -> dict[str, Served]:
    crowds = [(model,)] * 4 + [(OTHER,)] * 4
    alternating = [(model, OTHER)] * 4
    some = ("--memory", str(one_and_a_half(models, model)))
    runs: list[tuple[str, tuple[str, ...], list[Any]]] = [
        (f"{model} alone", (), [(model,)] * 4),
        (f"{OTHER} alone", (), [(OTHER,)] * 4),
        ("alternating, memory for both", (), alternating),
        ("alternating, memory for one and a half", some, alternating),
        ("crowds, memory for both", (), crowds),
        ("crowds, memory for one and a half", some, crowds),
    ]
    found = {}
    for name, flags, clients in runs:
        with llmosd(models, *FLAGS, *flags) as server:
            Load(server, [(model, OTHER)] if not flags else [(model,)], 1).run()  # graphs are read, threads are there
            found[name] = Load(server, clients, seconds).run()
        print(line(name, found[name]), flush=True)
    return found


def line(name: str, served: Served) -> str:
    speeds = " + ".join(f"{speed:.0f}" for speed in served.tokens_per_s.values())
    loads, unloads = f"{1e3 * served.load_s:.0f} ms", f"{1e3 * served.unload_s:.0f} ms"
    return (
        f"{name}: {served.total:.0f} tokens/s ({speeds}), {served.requests} requests, "
        f"latency {served.latency_p50:.2f} s (at most {served.latency_max:.2f}), "
        f"{served.loads} loads of {loads}, {served.unloads} unloads of {unloads}, "
        f"{served.peak / served.budget:.2f} of {served.budget >> 20:,} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    options = parser.parse_args()
    facts = machine_facts()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        (models / options.model).symlink_to((options.home / "models" / options.model).absolute())
        command = [sys.executable, "-m", "llmosd", "models", "synth", OTHER, *GEOMETRY.split(), "--page-tokens", "16"]
        subprocess.run(command, env=os.environ | {"LLMOS_HOME": folder}, check=True, stdout=subprocess.DEVNULL)
        found = measure(models, options.model, options.seconds)
    if options.json:
        report = {"machine": asdict(facts), "runs": {name: asdict(served) for name, served in found.items()}}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
