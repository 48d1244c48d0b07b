"""What hibernating a half-done request takes, and what its K/V pages on disk save after `kill -9` and a restart.

One request with a prompt of so many random tokens is hibernated when it has generated a few; the daemon is killed. It
is started again twice, on a copy of what was left with and without `<id>.pages`: what counts is the time in prefill
after the restart. Medians of several repeats.

python bench/hibernation.py [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from facts import machine_facts

from llmosd.application import instance
from llmosd.config import default_home

PROMPTS, REPEATS, ANSWER, ID = (500, 4000), 3, 200, "asked"


@dataclass(frozen=True, slots=True)
class Cost:
    prompt_tokens: int
    hibernate_ms: float  # the command: pages and image durable
    pages_bytes: int  # 0 where they were not worth keeping
    prefill_ms: float  # of the first daemon
    with_pages_ms: float  # prefill after the restart
    without_pages_ms: float


@contextlib.contextmanager
def daemon(home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    command = [sys.executable, "-m", "llmosd", "start", "--port", "0", "--mqtt-port", "0"]
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | {"LLMOS_HOME": str(home)}, stdout=log, stderr=log)
    try:
        while (record := instance.read(home)) is None or (record.pid, record.state) != (process.pid, "serving"):
            if process.poll() is not None:
                raise SystemExit(f"the daemon ended:\n{(home / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield record.http, process
    finally:
        process.kill()
        process.wait()


def shown(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/v1/requests/{ID}", trust_env=False).json()
    return found


def wait(url: str, state: str, tokens: int) -> dict[str, Any]:
    while (request := shown(url)).get("state") != state or request["completion_tokens"] < tokens:
        time.sleep(0.02)
    return request


def ask(url: str, prompt: list[int], model: str) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/v1/completions", json=body, headers={"X-Request-Id": ID}, timeout=None, trust_env=False)


def home_in(folder: Path, name: str, models: Path) -> Path:
    home = folder / name
    home.mkdir()
    (home / "models").symlink_to(models.absolute())
    return home


def once(models: Path, model: str, tokens: int) -> Cost:
    prompt = [random.randrange(1000, 40000) for _ in range(tokens)]
    with tempfile.TemporaryDirectory() as scratch:
        homes = [home_in(Path(scratch), name, models) for name in ("first", "with", "without")]
        with daemon(homes[0]) as (url, process):
            client = threading.Thread(target=ask, args=(url, prompt, model))
            client.start()
            wait(url, "decode", 5)
            began = time.perf_counter()
            before = httpx.post(f"{url}/v1/requests/{ID}/hibernate", timeout=60, trust_env=False).json()
            took = time.perf_counter() - began
            process.send_signal(signal.SIGKILL)
            client.join()
        pages = homes[0] / "hibernated" / f"{ID}.pages"
        size, after = pages.stat().st_size if pages.exists() else 0, []
        for home in homes[1:]:
            shutil.copytree(pages.parent, home / "hibernated")
            if home.name == "without":
                (home / "hibernated" / pages.name).unlink(missing_ok=True)
            with daemon(home) as (url, _):
                after.append(wait(url, "finished", ANSWER)["prefill_ms"] - before["prefill_ms"])
    return Cost(tokens, 1e3 * took, size, before["prefill_ms"], *after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    facts, costs = machine_facts(), []
    for tokens in PROMPTS:
        runs = [asdict(once(options.home / "models", options.model, tokens)) for _ in range(REPEATS)]
        cost = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        costs.append(cost)
        print(", ".join(f"{name} {value:,.0f}" for name, value in cost.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": asdict(facts), "costs": costs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
