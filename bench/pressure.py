"""The daemon and llama-server with too little memory for K and V: who is served, and how fast.

36 requests come at once, prompts of 100 to 300 random tokens, answers of 64. For K and V there is memory for 1,536
tokens of 8 bits: a quarter of what 16 of the longest requests take. llama-server has to divide it among slots
beforehand (it makes each of them a multiple of 256 tokens, so that it has a third more here), or lets all slots share
it (`--kv-unified`); it also gets it as 768 tokens of float16, its default. Its cache of prompts, in more memory, is
off. The daemon has its swap file. Servers take turns; each is started anew in every round, and medians are of all
rounds. Without DIRECTORY the daemon is measured alone.

    python bench/peers/install.py DIRECTORY     (once; takes minutes)
    python bench/pressure.py DIRECTORY
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from facts import machine_facts
from servers import Server, llama_server, llmosd
from serving import ANSWER, Arrival, Start, burst, prompts, replay

from llmosd.config import default_home

TOKENS = 1536  # of 8 bits, 12,240 bytes each with SmolLM2-135M
PAGE_TOKENS, SLOTS = 32, 16
WEIGHTS = "q4_1"  # as in the model's file


@dataclass(frozen=True, slots=True)
class Served:
    """Time to the first token is the median of those that were served, in seconds."""

    requests: int
    served: int
    seconds: float
    tokens_per_s: float
    ttft_p50: float | None
    failures: dict[str, int]


def measure(start: Start) -> Served:
    with start() as server:
        asyncio.run(replay(server, [Arrival(0.0, prompts(5)[0][:64])]))
        return served(server)


def served(server: Server) -> Served:
    answers = asyncio.run(replay(server, burst()))
    good = [answer for answer in answers if not answer.failure]
    seconds = max((answer.pieces[-1] for answer in good), default=0.0)
    return Served(
        requests=len(answers),
        served=len(good),
        seconds=seconds,
        tokens_per_s=len(good) * ANSWER / seconds if good else 0.0,
        ttft_p50=statistics.median(answer.pieces[0] - answer.asked for answer in good) if good else None,
        failures=dict(Counter(answer.failure.partition(" for url")[0] for answer in answers if answer.failure)),
    )


def starts(peers: Path | None, home: Path, threads: int) -> dict[str, Start]:
    def ours(kv_format: str, tokens: int) -> Start:
        sizes = ("--page-tokens", str(PAGE_TOKENS), "--pages", str(tokens // PAGE_TOKENS), "--slots", str(SLOTS))
        return lambda: llmosd(home / "models", "--kv-format", kv_format, "--eviction", "auto", *sizes)

    def theirs(kv_format: str, slots: int, tokens: int, *flags: str) -> Start:
        assert peers is not None
        program, weights = peers / "llama/bin/llama-server", peers / f"gguf/{WEIGHTS}.gguf"
        flags += ("-ctk", kv_format, "-ctv", kv_format, "--cache-ram", "0")
        return lambda: llama_server(program, weights, slots, threads, tokens // slots, *flags)

    found = {"llmosd int8": ours("int8", TOKENS), "llmosd float16": ours("float16", TOKENS // 2)}
    if peers is None or not (peers / "llama/bin/llama-server").exists():
        print("llama-server is not there: bench/peers/install.py builds it")
        return found
    return found | {
        "llama-server q8_0, 4 slots": theirs("q8_0", 4, TOKENS),
        "llama-server q8_0, 16 slots that share": theirs("q8_0", SLOTS, TOKENS, "--kv-unified"),
        "llama-server f16, 2 slots": theirs("f16", 2, TOKENS // 2),
        "llama-server f16, 16 slots that share": theirs("f16", SLOTS, TOKENS // 2, "--kv-unified"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", help="where install.py put the peers")
    parser.add_argument("--only", action="append", metavar="NAME", help="servers whose names have this in them")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--threads", type=int, default=machine_facts().cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="rounds that it has are kept and counted")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": asdict(machine_facts()), "tokens": TOKENS}
    before = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = before.get("runs", {})
    for _ in range(options.rounds):
        for name, start in starts(options.directory, options.home, options.threads).items():
            if not options.only or any(part in name for part in options.only):
                runs.setdefault(name, []).append(asdict(measure(start)))
                print(line(name, runs[name][-1:]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(report | {"runs": runs}, indent=2) + "\n")
    print("medians")
    for name, found in runs.items():
        print(line(name, found))


def line(name: str, runs: list[dict[str, Any]]) -> str:
    """Medians of some rounds; of those in which anybody was served for the time to the first token."""
    served, speed = (statistics.median(run[key] for run in runs) for key in ("served", "tokens_per_s"))
    first = [run["ttft_p50"] for run in runs if run["ttft_p50"] is not None]
    failures = sum((Counter(run["failures"]) for run in runs), Counter[str]())
    return (
        f"{name}: {served:.0f} of {runs[0]['requests']} served, {speed:.0f} tokens/s"
        f"{f', TTFT p50 {statistics.median(first):.1f} s' if first else ''}"
        f"{f', {dict(failures)}' if failures else ''} ({len(runs)} rounds)"
    )


if __name__ == "__main__":
    main()
