"""Our engine against its peers on this machine: paired, in one run, each peer in every format that loads.

    python bench/peers/install.py DIRECTORY     (once; takes minutes)
    python bench/compare.py DIRECTORY

Each engine is a child process that is stopped while another is timed. In each cell a peer's windows lie next to ours,
its turn alternating between before and after, and each pair gives one ratio. A peer whose perplexity on the same text
is more than 0.5 % worse than ours is listed and does not count as best. With `--avx2` it is a comparison for processors
that have no more than that, on one that has (see `peers/avx2_only.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from facts import machine_facts
from peers import avx2_only
from peers.catalogue import Peer, ours, peers
from peers.parent import Child, ChildFailed
from roofline import Limits, floor, measure_limits
from statistics95 import Interval, median_interval

from llmosd.config import default_home
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.quality import texts, windows

BUDGET = 0.005  # a peer may have so much more perplexity than we, and still count
WINDOW_S, MOST_STEPS = 0.4, 64
FEW = 3  # pairs of a peer that cannot be the best


@dataclass(frozen=True, slots=True)
class Cell:
    method: str  # decode, prefill or mixed
    batch: int
    context: int  # of each sequence
    prompt: int = 0

    @property
    def name(self) -> str:
        if self.method == "prefill":
            return f"prefill {self.prompt}"
        mixed = f" + prompt of {self.prompt}" if self.prompt else ""
        return f"B{self.batch}, context {self.context}{mixed}"

    @property
    def goal(self) -> float:
        """The ratio to the best peer that we are out for."""
        if self.method == "decode" and self.context >= 1500:
            return 2.0
        return 1.5 if self.batch >= 8 else 1.3


@dataclass(frozen=True, slots=True)
class Against:
    """One peer in one cell: its own milliseconds, and how many times as long as ours they are."""

    peer: str
    counts: bool
    ms: float  # a step, a prompt, or the mixed step; median
    ratio: Interval


@dataclass(frozen=True, slots=True)
class Row:
    cell: Cell
    ms: float
    tokens_per_s: float
    against: list[Against]

    @property
    def best(self) -> Against:
        """The fastest peer that counts."""
        return min((one for one in self.against if one.counts), key=lambda one: one.ratio.median)

    @property
    def verdict(self) -> str:
        ratio = self.best.ratio
        if not ratio.is_95:
            return "unresolved"
        if ratio.low >= self.cell.goal:
            return "met"
        return "missed" if ratio.high < self.cell.goal else "unresolved"


def cells() -> list[Cell]:
    decode = [Cell("decode", batch, context) for context in (128, 512, 1500) for batch in (1, 4, 8, 16, 32)]
    prefill = [Cell("prefill", 0, 1, tokens) for tokens in (64, 256, 512, 1500)]
    return [*decode, *prefill, Cell("mixed", 8, 512, 128)]


# ---------------------------------------------------------------- quality


def perplexities(children: list[Child], text: list[list[int]]) -> dict[str, float]:
    found = {}
    for child in children:
        losses = [loss for window in text for loss in child.ask("score", window)["values"]]
        found[child.name] = math.exp(sum(losses) / len(losses))
        print(f"{child.name:24} perplexity {found[child.name]:.3f}", flush=True)
    return found


def stored_perplexities(path: Path, children: list[Child], text: list[list[int]]) -> dict[str, float]:
    """Those of an earlier run with the same text for peers; ours is scored afresh."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    known = stored["perplexity"] if stored.get("windows") == len(text) else {}
    new = perplexities([child for child in children if child is children[0] or child.name not in known], text)
    path.write_text(json.dumps({"windows": len(text), "perplexity": known | new}, indent=2) + "\n")
    return {child.name: (known | new)[child.name] for child in children}


# ---------------------------------------------------------------- timing


def measure(cell: Cell, us: Child, others: list[Child], counted: set[str], pairs: int) -> Row:
    us.ask("fill", cell.batch, cell.context)
    warm = us.seconds(*_operation(cell, 2))
    steps = max(1, min(MOST_STEPS, round(WINDOW_S / warm * 2))) if cell.method == "decode" else 1
    against, our_seconds, fastest = list[Against](), list[float](), math.inf
    for other in list(others):
        counts = other.name in counted
        try:
            other.ask("fill", cell.batch, cell.context)
            other.seconds(*_operation(cell, 1))
            seconds = _pairs(us, other, _operation(cell, steps), pairs if counts else FEW, fastest)
            other.ask("fill", 0, 1)
        except ChildFailed as error:
            print(f"from {cell.name} on without {error}", file=sys.stderr)
            others.remove(other)
            continue
        our_seconds += [mine for mine, _ in seconds]
        ratio = median_interval([theirs / mine for mine, theirs in seconds])
        against.append(Against(other.name, counts, 1e3 * _median([t for _, t in seconds]) / steps, ratio))
        fastest = min(fastest, ratio.median if counts else math.inf)
    if not any(one.counts for one in against):
        raise SystemExit(f"{cell.name}: no peer is left to compare with")
    ms = 1e3 * _median(our_seconds) / steps
    return Row(cell, ms, (cell.prompt or cell.batch) / ms * 1e3, against)


def _operation(cell: Cell, steps: int) -> tuple[str, int]:
    return cell.method, cell.prompt or steps


def _pairs(
    us: Child, other: Child, operation: tuple[str, int], pairs: int, fastest: float
) -> list[tuple[float, float]]:
    """(our, their) seconds; ends after a few pairs where the peer is far from the fastest so far."""
    found = list[tuple[float, float]]()
    while len(found) < pairs:
        if len(found) % 2:
            theirs = other.seconds(*operation)
            mine = us.seconds(*operation)
        else:
            mine = us.seconds(*operation)
            theirs = other.seconds(*operation)
        found.append((mine, theirs))
        if len(found) == FEW and min(theirs / mine for mine, theirs in found) > 1.3 * fastest:
            break
    return found


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# ---------------------------------------------------------------- report


def line(row: Row, limits: Limits, model: InstalledModel) -> str:
    best, ratio = row.best, row.best.ratio
    least = floor(model, row.cell.method, row.cell.batch, row.cell.context, row.cell.prompt, limits)
    return (
        f"{row.cell.name:34} {row.ms:8.1f} {row.tokens_per_s:7.0f}   {best.peer:18} {ratio.median:5.2f} "
        f"[{ratio.low:4.2f}, {ratio.high:4.2f}] n{ratio.samples:<2} goal {row.cell.goal} {row.verdict:10} "
        f"{least.ms:7.1f} {least.bound:7} {row.ms / least.ms:5.1f}x"
    )


def details(row: Row) -> str:
    parts = [
        f"{one.peer}{'' if one.counts else '*'} {one.ms:.1f} ms {one.ratio.median:.2f} "
        f"[{one.ratio.low:.2f}, {one.ratio.high:.2f}] n{one.ratio.samples}"
        for one in row.against
    ]
    return f"{row.cell.name}: " + " · ".join(parts)


def record(row: Row, limits: Limits, model: InstalledModel) -> dict[str, Any]:
    least = floor(model, row.cell.method, row.cell.batch, row.cell.context, row.cell.prompt, limits)
    return asdict(row) | {
        "name": row.cell.name,
        "best": row.best.peer,
        "goal": row.cell.goal,
        "verdict": row.verdict,
        "roofline": asdict(least) | {"measured_over_floor": row.ms / least.ms},
    }


def widest_gap(rows: list[Row], limits: Limits, model: InstalledModel, us: Child) -> dict[str, Any]:
    """The cell that is farthest from its floor, and where a profiled step of it goes."""

    def over(row: Row) -> float:
        cell = row.cell
        return row.ms / floor(model, cell.method, cell.batch, cell.context, cell.prompt, limits).ms

    row = max(rows, key=over)
    method, count = _operation(row.cell, 2)
    spent = us.ask("profile", method, row.cell.batch, row.cell.context, count)["values"]
    whole = sum(spent.values())
    shares = ", ".join(f"{name} {ms:.1f} ms ({ms / whole:.0%})" for name, ms in list(spent.items())[:5])
    text = f"widest gap: {row.cell.name}, {over(row):.1f} times its floor; operators of its last step: {shares}"
    return {"cell": row.cell.name, "measured_over_floor": over(row), "operators_ms": spent, "text": text}


@contextlib.contextmanager
def started(us: Peer, wanted: list[Peer], environment: Mapping[str, str]) -> Iterator[list[Child]]:
    """Our child and those of all peers that load; what does not is named."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(us, environment))]
        for peer in wanted:
            try:
                children.append(stack.enter_context(Child(peer, environment)))
            except ChildFailed as error:
                print(f"not measured: {error}", file=sys.stderr)
        yield children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where install.py put the peers")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=machine_facts().cores)
    parser.add_argument("--pairs", type=int, default=9, help="of a peer that could be the best of its cell")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, for perplexity")
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--peers", default="", help="only peers whose name contains this")
    parser.add_argument("--avx2", action="store_true", help="all see a processor with AVX2 and nothing beyond it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    environment = avx2_only.environment(options.directory) if options.avx2 else {}
    model = find(options.home, options.model)
    text = windows(model, texts(), options.windows).tolist()
    wanted = [peer for peer in peers(options.directory, options.threads) if options.peers in peer.name]
    with started(ours(options.home, options.model, options.threads), wanted, environment) as (us, *others):
        quality = stored_perplexities(options.directory / "perplexity.json", [us, *others], text)
        counted = {name for name, value in quality.items() if value <= quality[us.name] * (1 + BUDGET)}
        limits = measure_limits(options.threads, "x86-64-v3" if options.avx2 else "native")
        print(f"DRAM {limits.gb_per_s:.1f} GB/s · float32 {limits.gflop_per_s:.0f} GFLOP/s · {machine_facts()}")
        began, rows = time.monotonic(), list[Row]()
        report: dict[str, Any] = {
            "machine": asdict(machine_facts()),
            "avx2": options.avx2,
            "limits": asdict(limits),
            "perplexity": quality,
            "counted": sorted(counted),
            "cells": [],
        }
        for cell in [cell for cell in cells() if options.cells in cell.name]:
            rows.append(measure(cell, us, others, counted, options.pairs))
            print(f"{line(rows[-1], limits, model)}  {time.monotonic() - began:5.0f} s", flush=True)
            report["cells"].append(record(rows[-1], limits, model))
            _save(report, options.json)  # with each cell: half an hour is long
        print("\n".join(map(details, rows)))
        report["widest_gap"] = widest_gap(rows, limits, model, us)
        print(report["widest_gap"]["text"])
        _save(report, options.json)


def _save(report: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
