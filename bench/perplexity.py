"""What each format costs in quality, on all of the packaged text; the sums are llmosd/runtime/quality.py's.

python bench/perplexity.py [--home DIR] [--windows N] [--json FILE]
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
from llmosd.runtime.quality import BUDGET, Cost, compare, formats, score, texts, windows


def main() -> None:
    parser = argparse.ArgumentParser(description="perplexity cost of each format against float32")
    parser.add_argument("--home", type=Path, help="data directory with the model (default: as llmosd)")
    parser.add_argument("--windows", type=int, help="score only the first N windows of 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to FILE")
    args = parser.parse_args()
    settings = config.load({"home": args.home} if args.home else {})
    model = find(settings.home, settings.model)
    text = windows(model, texts())[: args.windows]
    yardstick, others = formats()
    with Bars() as progress:
        reference = score(model, yardstick, text, args.threads, progress)
        costs = [compare(how.name, score(model, how, text, args.threads, progress), reference) for how in others]
    scored = reference.loss.size
    report(math.exp(reference.loss.mean()), costs, scored)
    if args.json:
        result = {
            "model": model.id,
            "tokens": scored,
            "windows": len(text),
            "reference": {"format": yardstick.name, "perplexity": math.exp(reference.loss.mean())},
            "formats": [asdict(cost) for cost in costs],
            "budget": BUDGET,
            "within_budget": costs[0].high <= BUDGET,
            "machine": machine(),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def report(reference: float, costs: list[Cost], tokens: int) -> None:
    table = Table("format", "perplexity", "cost %", "95 % interval", "same best token %")
    table.title = f"{tokens} tokens; float32 perplexity {reference:.3f}"
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
