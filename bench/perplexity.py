"""What each format costs in quality, on all of the packaged text; the sums are llmosd/runtime/quality.py's.

Every format is held against float32 throughout, and every K/V format against float32 K/V on the same weights as well:
what the weights cost is in both and cancels out.

python bench/perplexity.py [--home DIR] [--windows N] [--window TOKENS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict
from pathlib import Path

import onnxruntime
from rich.console import Console
from rich.table import Table

from llmosd import config
from llmosd.application.cli.progress import Bars
from llmosd.runtime import native
from llmosd.runtime.installed import find
from llmosd.runtime.quality import BUDGET, WINDOW, Cost, Format, Scores, compare, formats, score, texts, windows


def main() -> None:
    parser = argparse.ArgumentParser(description="perplexity cost of each format against float32")
    parser.add_argument("--home", type=Path, help="data directory with the model (default: as llmosd)")
    parser.add_argument("--windows", type=int, help="score only the first N windows")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="TOKENS", help=f"their length ({WINDOW})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to FILE")
    args = parser.parse_args()
    settings = config.load({"home": args.home} if args.home else {})
    model = find(settings.home, settings.model)
    text = windows(model, texts(), size=args.window)[: args.windows]
    yardstick, others = formats()
    with Bars() as progress:
        scores = {how: score(model, how, text, args.threads, progress) for how in (yardstick, *others)}
    reference = scores[yardstick]
    costs = [compare(how.name, scores[how], reference) for how in others]
    pages = kv_costs(scores)
    scored = reference.loss.size
    report(f"{scored} tokens; float32 perplexity {math.exp(reference.loss.mean()):.3f}", costs)
    report("K/V alone: against float32 K/V on the same weights", pages)
    if args.json:
        result = {
            "model": model.id,
            "tokens": scored,
            "windows": len(text),
            "window": args.window,
            "reference": {"format": yardstick.name, "perplexity": math.exp(reference.loss.mean())},
            "formats": [asdict(cost) for cost in costs],
            "kv": [asdict(cost) for cost in pages],
            "budget": BUDGET,
            "within_budget": costs[0].high <= BUDGET,
            "machine": machine(),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def kv_costs(scores: dict[Format, Scores]) -> list[Cost]:
    """Each format of K/V against float32 K/V of the same operators and weights."""
    bases = {(how.backend, how.weights): found for how, found in scores.items() if how.kv == "float32"}
    return [
        compare(how.name, found, bases[how.backend, how.weights])
        for how, found in scores.items()
        if how.kv != "float32" and (how.backend, how.weights) in bases
    ]


def report(title: str, costs: list[Cost]) -> None:
    table = Table("format", "perplexity", "cost %", "95 % interval", "same best token %", title=title)
    for cost in costs:
        interval = f"{100 * cost.low:+.3f} … {100 * cost.high:+.3f}"
        same = f"{100 * cost.top1_agreement:.2f}"
        table.add_row(cost.format, f"{cost.perplexity:.3f}", f"{100 * cost.cost:+.3f}", interval, same)
    Console().print(table)


def machine() -> dict[str, str]:
    found = native.status()
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "instruction_set": found.isa,
        "compiler": found.compiler,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    main()
