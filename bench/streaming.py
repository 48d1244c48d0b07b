"""The daemon under streaming HTTP clients beside the bare engine, in pairs, and what each thread costs; idle cost too.

Each round the same requests go to an engine driven without HTTP (kernel, executor and loop in a process of its own) and
through the HTTP API of daemons, in alternating order. Tokens/s count from the first request to the last stream's end,
prefill included. The client reads raw sockets; its share of the machine is printed, since it takes it from the daemon.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from facts import machine_facts
from processes import ThreadTimes, cpu_of

from llmosd.application import instance
from llmosd.config import default_home

PROMPT_TOKENS = 64
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Run:
    """Shares are of one core; `overhead` is the part of the step time that is not spent inside ONNX Runtime."""

    tokens_per_s: float
    client: float = 0.0
    event_loop: float = 0.0
    engine: float = 0.0
    overhead: float = 0.0


# ------------------------------------------------------------ the client


def bodies(seed: int, streams: int, tokens: int) -> list[bytes]:
    """A request a stream, no two with a common beginning."""
    draw = random.Random(seed)
    shared = {"model": MODEL, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    prompts = ([draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(streams))
    return [json.dumps(shared | {"prompt": prompt}).encode() for prompt in prompts]


def read_streams(address: tuple[str, int], requests: list[bytes]) -> float:
    """Seconds from the first request to the end of the last stream."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    for body in requests:
        connection = socket.create_connection(address)
        connection.sendall(head % len(body) + body)
        selector.register(connection, selectors.EVENT_READ, bytearray())
    while selector.get_map():
        for key, _ in selector.select():
            _read_some(selector, key)
    return time.perf_counter() - began


def _read_some(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    assert isinstance(key.fileobj, socket.socket)
    if data := key.fileobj.recv(65536):
        key.data.extend(data)
        return
    selector.unregister(key.fileobj)
    key.fileobj.close()
    if b'"finish_reason":"length"' not in key.data or b"data: [DONE]" not in key.data:
        raise SystemExit(f"a stream did not end as it should: {bytes(key.data[-500:])!r}")


# ------------------------------------------------------------ what is measured


class BareEngine:
    """bare_engine.py in a process of its own, asked over pipes."""

    def __init__(self, home: Path, spin: bool) -> None:
        command = [sys.executable, str(Path(__file__).with_name("bare_engine.py")), str(home), MODEL, str(int(spin))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, requests: list[bytes]) -> Run:
        tokens = sum(json.loads(body)["max_tokens"] for body in requests)
        assert self._process.stdin is not None
        self._process.stdin.write(f"[{','.join(map(bytes.decode, requests))}]\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Run(tokens / answer["seconds"], engine=answer["cpu"] / answer["seconds"], overhead=answer["overhead"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


class Daemon:
    """One of its own, with its database and broker."""

    def __init__(self, models: Path, spin: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        home = Path(self._folder.name)
        (home / "models").symlink_to(models)
        command = [sys.executable, "-m", "llmosd", "start", "--port", "0", "--mqtt-port", "0"]
        command.append("--spin" if spin else "--no-spin")
        with (home / "log").open("wb") as log:
            environment = os.environ | {"LLMOS_HOME": str(home)}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = urlsplit(self._wait_until_serving(home))
        self._address = url.hostname or "", url.port or 0

    def run(self, requests: list[bytes]) -> Run:
        tokens = sum(json.loads(body)["max_tokens"] for body in requests)
        threads, steps, client = ThreadTimes(self._process.pid), self._step_seconds(), time.process_time()
        seconds = read_streams(self._address, requests)
        client = time.process_time() - client
        loop, others = threads.since()
        run, overhead = (after - before for after, before in zip(self._step_seconds(), steps, strict=True))
        return Run(tokens / seconds, client / seconds, loop / seconds, others / seconds, overhead / (run + overhead))

    def idle_share(self, seconds: float) -> float:
        """Of one core, broker included; without a client."""
        before = cpu_of(self._process.pid)
        time.sleep(seconds)
        return (cpu_of(self._process.pid) - before) / seconds

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _wait_until_serving(self, home: Path) -> str:
        while self._process.poll() is None:
            record = instance.read(home)
            if record and record.state == "serving":
                return record.http
            time.sleep(0.1)
        raise SystemExit(f"a daemon did not start:\n{(home / 'log').read_text()}")

    def _step_seconds(self) -> tuple[float, float]:
        """Inside ONNX Runtime and outside, of all steps so far."""
        with socket.create_connection(self._address) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        run, overhead = (
            float(found[1]) if (found := re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)) else 0.0
            for name in ("llmos_step_run_seconds_total", "llmos_step_overhead_seconds_total")
        )
        return run, overhead


# ------------------------------------------------------------ rounds


@contextmanager
def subjects(home: Path) -> Iterator[dict[str, Callable[[list[bytes]], Run]]]:
    """What takes turns: the bare engine first, which the others are compared with."""
    with ExitStack() as ending:

        def keep(subject: BareEngine | Daemon) -> Callable[[list[bytes]], Run]:
            ending.callback(subject.close)
            return subject.run

        yield {
            "bare engine": keep(BareEngine(home, spin=True)),
            "daemon": keep(Daemon(home / "models", spin=True)),
            "daemon, no spin": keep(Daemon(home / "models", spin=False)),
        }


def take_turns(
    run: dict[str, Callable[[list[bytes]], Run]], rounds: int, streams: int, tokens: int
) -> dict[str, list[Run]]:
    """One unrecorded round, then each subject once a round, in an order that turns about."""
    names, runs = list(run), {name: list[Run]() for name in run}
    for number in range(-1, rounds):
        for name in names if number % 2 else names[::-1]:
            measured = run[name](bodies(number, streams, tokens if number >= 0 else 4))
            if number >= 0:
                runs[name].append(measured)
                print(f"{name}: {measured.tokens_per_s:.0f} tokens/s", file=sys.stderr, flush=True)
    return runs


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and the interval of order statistics that holds the population's with at least 95 % (sign test).

    With fewer than six values no such interval exists, and the range is given.
    """
    ordered, n = sorted(values), len(values)
    low, tail, term = 0, 0.0, 0.5**n
    while tail + term <= 0.025:  # P(fewer than low + 1 values lie below the median)
        low, tail = low + 1, tail + term
        term *= (n - low + 1) / low
    low = max(0, low - 1)
    return statistics.median(ordered), ordered[low], ordered[n - 1 - low]


def table(runs: dict[str, list[Run]]) -> str:
    base = next(iter(runs.values()))
    lines = [
        "| | tokens/s | ratio, 95 % | client | event loop | engine | outside run |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        pairs = zip(measured, base, strict=True)
        middle, low, high = median_interval([run.tokens_per_s / bare.tokens_per_s for run, bare in pairs])
        speeds = [run.tokens_per_s for run in measured]
        shares = [
            statistics.median(100 * getattr(run, share) for run in measured)
            for share in ("client", "event_loop", "engine", "overhead")
        ]
        lines.append(
            f"| {name} | {statistics.median(speeds):.0f} ({min(speeds):.0f} … {max(speeds):.0f}) | "
            f"{middle:.2f} ({low:.2f} … {high:.2f}) | " + " | ".join(f"{share:.1f} %" for share in shares) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the installed model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="generated by each stream")
    parser.add_argument("--idle", type=float, metavar="S", help="measure an idle daemon for so many seconds instead")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": asdict(machine_facts())}
    if args.idle:
        daemon = Daemon(args.home.absolute() / "models", spin=True)
        result["idle"] = daemon.idle_share(args.idle)
        daemon.close()
        print(f"idle: {100 * result['idle']:.2f} % of a core over {args.idle:g} s, broker included")
    else:
        with subjects(args.home.absolute()) as run:
            runs = take_turns(run, args.rounds, args.streams, args.tokens)
        result["runs"] = {name: [asdict(one) for one in measured] for name, measured in runs.items()}
        print(table(runs))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
