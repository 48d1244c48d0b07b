"""What a long prompt does to those who are reading their answers, and they to it.

Each round asks a daemon with default settings for the first token of a long prompt: alone, and again while eight
clients stream. Gaps between the events of those streams count from the prompt's arrival to its first token, and in a
baseline right before it. No two prompts have a beginning in common; the answers are ordinary text, sampled, endless.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import selectors
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from facts import machine_facts
from servers import Server, llmosd
from statistics95 import median_interval

from llmosd.config import default_home

STREAMS, PROMPT_TOKENS, BASELINE_S = 8, 1500, 3.0
WORST_P99, WORST_GAP, WORST_TTFT = 1.5, 5.0, 6.0
TOPICS = ("a lighthouse", "the sea", "an old clock", "a railway", "two brothers", "a garden", "winter", "a letter")


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds, and ratios to this round's own baseline and to the first token's time alone."""

    baseline_p50: float
    baseline_p99: float
    gap_p50: float
    gap_p99: float
    gap_max: float
    gaps: int
    ttft_alone: float
    ttft: float
    p99_ratio: float
    max_ratio: float
    ttft_ratio: float


@dataclass(slots=True, eq=False)
class Stream:
    """A streamed completion and when its events came."""

    connection: socket.socket
    asked: float
    events: list[float] = field(default_factory=list)


class Client:
    def __init__(self, server: Server) -> None:
        url = urlsplit(server.url)
        self._address = url.hostname or "", url.port or 0
        self._model = server.model
        self._selector = selectors.DefaultSelector()

    def ask(self, prompt: str | list[int], tokens: int, seed: int) -> Stream:
        body = {"model": self._model, "prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": True}
        data = json.dumps(body | {"temperature": 0.8, "ignore_eos": True}).encode()
        stream = Stream(socket.create_connection(self._address), time.perf_counter())
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        stream.connection.sendall(head.encode() + data)
        self._selector.register(stream.connection, selectors.EVENT_READ, stream)
        return stream

    def read(self, until: Callable[[], bool]) -> None:
        while not until():
            for key, _ in self._selector.select(0.1):
                data = key.data.connection.recv(65536)
                if not data or b'"error"' in data:
                    raise SystemExit(f"a stream broke: {data!r}")
                key.data.events += [time.perf_counter()] * (b'"text"' in data)

    def leave(self, *streams: Stream) -> None:
        for stream in streams:
            self._selector.unregister(stream.connection)
            stream.connection.close()


def long_prompt(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)]


def first_token(client: Client, seed: int) -> Stream:
    stream = client.ask(long_prompt(seed), 4, seed)
    client.read(lambda: bool(stream.events))
    client.leave(stream)
    return stream


def gaps(streams: list[Stream], since: float, until: float) -> list[float]:
    """Milliseconds, of all gaps that have a part in that time."""
    pairs = (pair for stream in streams for pair in itertools.pairwise(stream.events))
    return [1e3 * (after - before) for before, after in pairs if after > since and before < until]


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def measure(client: Client, seed: int) -> Round:
    alone = first_token(client, 2 * seed)
    streams = [
        client.ask(f"Chapter {seed}. A long story about {topic}, from the beginning.\n\nOnce", 2000, seed)
        for topic in TOPICS[:STREAMS]
    ]
    client.read(lambda: min(len(stream.events) for stream in streams) > 20)
    begun = time.perf_counter()
    client.read(lambda: time.perf_counter() - begun > BASELINE_S)
    late = first_token(client, 2 * seed + 1)
    client.read(lambda: all(stream.events[-1] > late.events[0] for stream in streams))
    client.leave(*streams)
    baseline = gaps(streams, begun, late.asked)
    beside = gaps(streams, late.asked, late.events[0])
    ttft_alone, ttft = (1e3 * (one.events[0] - one.asked) for one in (alone, late))
    p50, p99 = statistics.median(baseline), percentile_99(baseline)
    return Round(
        baseline_p50=p50,
        baseline_p99=p99,
        gap_p50=statistics.median(beside),
        gap_p99=percentile_99(beside),
        gap_max=max(beside),
        gaps=len(beside),
        ttft_alone=ttft_alone,
        ttft=ttft,
        p99_ratio=percentile_99(beside) / p99,
        max_ratio=max(beside) / p50,
        ttft_ratio=ttft / ttft_alone,
    )


def report(rounds: list[Round]) -> dict[str, Any]:
    """Medians of the rounds with their intervals, and whether each goal is met by the median and by how many rounds."""
    bars = {"p99_ratio": WORST_P99, "max_ratio": WORST_GAP, "ttft_ratio": WORST_TTFT}
    found = {name: median_interval([getattr(one, name) for one in rounds]) for name in Round.__dataclass_fields__}
    for name, one in found.items():
        bar = f"   at most {bars[name]}" if name in bars else ""
        print(f"{name:<14} {one.median:9.2f} ({one.low:.2f} … {one.high:.2f}){bar}")
    met = {name: sum(getattr(one, name) <= bar for one in rounds) for name, bar in bars.items()}
    print("rounds that meet each goal:", ", ".join(f"{name} {count}/{len(rounds)}" for name, count in met.items()))
    return {
        "medians": {name: asdict(one) for name, one in found.items()},
        "goals": bars,
        "rounds_that_meet": met,
        "rounds": [asdict(one) for one in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the installed model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--itl-target", type=int, default=0, help="the daemon's setting")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    facts = machine_facts()
    with llmosd(args.home / "models", "--itl-target", str(args.itl_target)) as server:
        client = Client(server)
        measure(client, 1000)  # not recorded
        rounds = [measure(client, number) for number in range(args.rounds)]
    result = {"machine": asdict(facts), "itl_target": args.itl_target, **report(rounds)}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
