"""The daemon under streaming HTTP clients beside the bare engine, in pairs, and what each thread costs; idle cost too.

Each round the same requests go to an engine driven without HTTP (kernel, executor and loop in a process of its own) and
through the HTTP API of daemons, in alternating order. Tokens/s count from the first request to the last stream's end,
prefill included. The client reads raw sockets; its share of the machine is printed, since it takes it from the daemon.

What a step costs outside ONNX Runtime is taken from steps that only decode, with all slots at work: from when as many
streams have their second token until the fastest has three quarters of its own, or all. It is all the time from one
commit to the next without the graph's operators, so that waits for the interpreter lock count, and ONNX Runtime's own
way back.
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
from statistics95 import Interval, median_interval

from llmosd.application import instance
from llmosd.config import default_home

PROMPT_TOKENS = 64
SETTLING_S = 3
SPEED, OVERHEAD = 0.9, 0.05  # goals of the daemon: of the bare engine's tokens/s; of a step's time, outside the run
MODEL = "smollm2-135m-instruct"
SAMPLED = {
    "temperature": 0.8,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.1,
    "logprobs": 5,
    "seed": 1,
}


@dataclass(frozen=True, slots=True)
class Run:
    """Shares are of one core; `overhead` is the part of decode steps' time that is not spent inside ONNX Runtime."""

    tokens_per_s: float
    client: float = 0.0
    event_loop: float = 0.0
    engine: float = 0.0
    overhead: float = 0.0
    overhead_us: float = 0.0  # of a step
    step_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """`sampled`: every second stream with temperature, top-p, three penalties and 5 logprobs, the others greedy."""

    streams: int
    slots: int
    tokens: int
    sampled: bool


# ------------------------------------------------------------ the client


def bodies(seed: int, load: Load) -> list[bytes]:
    """A request a stream, no two with a common beginning."""
    draw = random.Random(seed)
    shared = {"model": MODEL, "max_tokens": load.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    prompts = ([draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(load.streams))
    return [
        json.dumps(shared | {"prompt": prompt} | (SAMPLED if load.sampled and number % 2 else {})).encode()
        for number, prompt in enumerate(prompts)
    ]


@dataclass(slots=True)
class Received:
    """What a stream brought: the end of its bytes, and how many events."""

    end: bytes = b""
    events: int = 0


def read_streams(address: tuple[str, int], requests: list[bytes], load: Load, mark: Callable[[], None]) -> float:
    """Seconds from the first request to the end of the last stream; `mark` is called where decoding begins and ends."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    selector = selectors.DefaultSelector()
    received = [Received() for _ in requests]
    began = time.perf_counter()
    for body, one in zip(requests, received, strict=True):
        connection = socket.create_connection(address)
        connection.sendall(head % len(body) + body)
        selector.register(connection, selectors.EVENT_READ, one)
    marks = [
        lambda: sum(one.events > 1 for one in received) >= load.slots,
        lambda: any(one.events >= 0.75 * load.tokens or b"[DONE]" in one.end for one in received),
    ]
    while selector.get_map():
        for key, _ in selector.select():
            _read_some(selector, key)
        if marks and marks[0]():
            marks.pop(0)
            mark()
    return time.perf_counter() - began


def _read_some(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    assert isinstance(key.fileobj, socket.socket)
    if data := key.fileobj.recv(65536):
        key.data.events += data.count(b"data: ")
        key.data.end = (key.data.end + data)[-2000:]
        return
    selector.unregister(key.fileobj)
    key.fileobj.close()
    if b'"finish_reason":"length"' not in key.data.end or b"data: [DONE]" not in key.data.end:
        raise SystemExit(f"a stream did not end as it should: {key.data.end!r}")


# ------------------------------------------------------------ what is measured


class BareEngine:
    """bare_engine.py in a process of its own, asked over pipes."""

    def __init__(self, home: Path, load: Load, spin: bool) -> None:
        script = Path(__file__).with_name("bare_engine.py")
        command = [sys.executable, str(script), str(home), MODEL, str(int(spin)), str(load.slots)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, requests: list[bytes]) -> Run:
        tokens = sum(json.loads(body)["max_tokens"] for body in requests)
        assert self._process.stdin is not None
        self._process.stdin.write(f"[{','.join(map(bytes.decode, requests))}]\n")
        self._process.stdin.flush()
        answer = self._answer()
        steps = (answer[name] for name in ("overhead", "overhead_us", "step_ms"))
        return Run(tokens / answer["seconds"], 0.0, 0.0, answer["cpu"] / answer["seconds"], *steps)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


class Daemon:
    """One of its own, with its database and broker."""

    def __init__(self, models: Path, load: Load, spin: bool) -> None:
        self._load = load
        self._folder = tempfile.TemporaryDirectory()
        home = Path(self._folder.name)
        (home / "models").symlink_to(models)
        command = [sys.executable, "-m", "llmosd", "start", "--port", "0", "--mqtt-port", "0"]
        command += ["--spin" if spin else "--no-spin", "--slots", str(load.slots)]
        with (home / "log").open("wb") as log:
            environment = os.environ | {"LLMOS_HOME": str(home)}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        url = urlsplit(self._wait_until_serving(home))
        self._address = url.hostname or "", url.port or 0

    def run(self, requests: list[bytes]) -> Run:
        tokens = sum(json.loads(body)["max_tokens"] for body in requests)
        threads, totals, client = ThreadTimes(self._process.pid), list[tuple[float, ...]](), time.process_time()
        seconds = read_streams(self._address, requests, self._load, lambda: totals.append(self._step_totals()))
        client = time.process_time() - client
        loop, others = threads.since()
        run, overhead, steps = (after - before for before, after in zip(*totals, strict=True))
        whole = run + overhead
        shares = (client / seconds, loop / seconds, others / seconds, overhead / whole)
        return Run(tokens / seconds, *shares, 1e6 * overhead / steps, 1e3 * whole / steps)

    def idle_share(self, seconds: float) -> float:
        """Of one core, broker included; without a client, once what comes with the start is over."""
        time.sleep(SETTLING_S)
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

    def _step_totals(self) -> tuple[float, ...]:
        """Seconds inside ONNX Runtime and outside, and number, of all steps so far."""
        with socket.create_connection(self._address) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        return tuple(
            float(found[1]) if (found := re.search(rf"^llmos_step_{name}{{.*}} (\S+)$", text, re.MULTILINE)) else 0.0
            for name in ("run_seconds_total", "overhead_seconds_total", "seconds_count")
        )


# ------------------------------------------------------------ rounds


@contextmanager
def subjects(home: Path, load: Load) -> Iterator[dict[str, Callable[[list[bytes]], Run]]]:
    """What takes turns: the bare engine first, which the others are compared with."""
    with ExitStack() as ending:

        def keep(subject: BareEngine | Daemon) -> Callable[[list[bytes]], Run]:
            ending.callback(subject.close)
            return subject.run

        yield {
            "bare engine": keep(BareEngine(home, load, spin=True)),
            "daemon": keep(Daemon(home / "models", load, spin=True)),
            "daemon, no spin": keep(Daemon(home / "models", load, spin=False)),
        }


def take_turns(run: dict[str, Callable[[list[bytes]], Run]], rounds: int, load: Load) -> dict[str, list[Run]]:
    """One unrecorded round, then each subject once a round, in an order that turns about."""
    names, runs = list(run), {name: list[Run]() for name in run}
    for number in range(-1, rounds):
        for name in names if number % 2 else names[::-1]:
            measured = run[name](bodies(number, load))
            if number >= 0:
                runs[name].append(measured)
                print(f"{name}: {measured.tokens_per_s:.0f} tokens/s", file=sys.stderr, flush=True)
    return runs


def table(runs: dict[str, list[Run]]) -> str:
    base = next(iter(runs.values()))
    lines = [
        "| | tokens/s | ratio, 95 % | client | event loop | engine | step | outside run, 95 % | µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in runs.items():
        pairs = zip(measured, base, strict=True)
        ratio = median_interval([run.tokens_per_s / bare.tokens_per_s for run, bare in pairs])
        speeds = [run.tokens_per_s for run in measured]
        shares = [
            statistics.median(100 * getattr(run, share) for run in measured)
            for share in ("client", "event_loop", "engine")
        ]
        step, outside = (
            statistics.median(getattr(run, name) for run in measured) for name in ("step_ms", "overhead_us")
        )
        outside_run = median_interval([100 * run.overhead for run in measured])
        lines.append(
            f"| {name} | {statistics.median(speeds):.0f} ({min(speeds):.0f} … {max(speeds):.0f}) | "
            f"{ratio.median:.2f} ({ratio.low:.2f} … {ratio.high:.2f}) | "
            + " | ".join(f"{share:.1f} %" for share in shares)
            + f" | {step:.1f} ms | {outside_run.median:.1f} % ({outside_run.low:.1f} … {outside_run.high:.1f})"
            + f" | {outside:.0f} |"
        )
    return "\n".join(lines)


def verdicts(runs: dict[str, list[Run]]) -> list[str]:
    """A goal is met or missed where the whole interval lies on one side of it."""
    ratios = [
        run.tokens_per_s / bare.tokens_per_s for run, bare in zip(runs["daemon"], runs["bare engine"], strict=True)
    ]
    speed, overhead = median_interval(ratios), median_interval([run.overhead for run in runs["daemon"]])
    fast = _verdict(speed, speed.low >= SPEED, speed.high < SPEED)
    small = _verdict(overhead, overhead.high <= OVERHEAD, overhead.low > OVERHEAD)
    return [
        f"tokens/s through HTTP over the bare engine's: {speed.median:.2f}, goal {SPEED}: {fast}",
        f"share of step time outside the run: {overhead.median:.1%}, goal {OVERHEAD:.0%}: {small}",
    ]


def _verdict(interval: Interval, met: bool, missed: bool) -> str:
    return "unresolved" if not interval.is_95 else "met" if met else "missed" if missed else "unresolved"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the installed model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--slots", type=int, help="sequences that run at once (default: one a stream)")
    parser.add_argument("--sampled", action="store_true", help="every second stream sampled, penalised, with logprobs")
    parser.add_argument("--tokens", type=int, default=96, help="generated by each stream")
    parser.add_argument("--idle", type=float, metavar="S", help="measure an idle daemon for so many seconds instead")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    load = Load(args.streams, args.slots or args.streams, args.tokens, args.sampled)
    result: dict[str, Any] = {"machine": asdict(machine_facts()), "load": asdict(load)}
    if args.idle:
        daemon = Daemon(args.home.absolute() / "models", load, spin=True)
        result["idle"] = daemon.idle_share(args.idle)
        daemon.close()
        print(f"idle: {100 * result['idle']:.2f} % of a core over {args.idle:g} s, broker included")
    else:
        with subjects(args.home.absolute(), load) as run:
            runs = take_turns(run, args.rounds, load)
        result["runs"] = {name: [asdict(one) for one in measured] for name, measured in runs.items()}
        print(table(runs), *verdicts(runs), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
