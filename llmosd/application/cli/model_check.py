"""`llmosd models check`: are a model's files as imported, and what does each format cost in quality?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmosd.application.cli import options, output
from llmosd.application.cli.progress import Bars
from llmosd.config import Config
from llmosd.errors import InvalidRequest, ModelError

if TYPE_CHECKING:
    from llmosd.runtime.installed import InstalledModel
    from llmosd.runtime.quality import Cost

TOKENS = 6144  # about two minutes on two cores with a model of 135 million weights
FEWEST_WINDOWS = 2  # an interval needs a spread


def add(actions: Any) -> None:
    check = actions.add_parser("check", help="verify a model's files and measure what each format costs in quality")
    check.add_argument("model", nargs="?", help="model id; without it the configured model")
    check.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"tokens to score ({TOKENS})")
    check.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to score instead of the packaged one")
    options.add_config(check, ("home", "threads"))
    options.add_json(check)
    check.set_defaults(handler=_check)


def _check(args: argparse.Namespace) -> int:
    from llmosd.runtime import installed, integrity
    from llmosd.runtime.quality import BUDGET

    settings = options.load(args)
    model = installed.find(settings.home, args.model or settings.model)
    if damaged := integrity.damaged(model):
        raise ModelError(f"damaged: {', '.join(damaged)}; `llmosd models rm {model.id}`, then pull it again")
    reference, costs = _measure(settings, model, args)
    within = costs[0].cost <= BUDGET
    if args.json:
        formats = [asdict(cost) for cost in costs]
        output.json({"id": model.id, **reference, "formats": formats, "budget": BUDGET, "within_budget": within})
    else:
        _print(reference, costs)
        print(f"the default format {'stays within' if within else 'exceeds'} {100 * BUDGET:g} %")
    return 0 if within else 1


def _measure(settings: Config, model: InstalledModel, args: argparse.Namespace) -> tuple[dict[str, Any], list[Cost]]:
    """The yardstick and every other format that this machine can run, the default one first."""
    from llmosd.hardware import processors
    from llmosd.runtime import quality

    sources: Iterable[str] = [_read(args.text)] if args.text else quality.texts()
    text = quality.windows(model, sources, max(FEWEST_WINDOWS, args.tokens // quality.WINDOW))
    if len(text) < FEWEST_WINDOWS:
        raise InvalidRequest(f"the text needs {FEWEST_WINDOWS * quality.WINDOW} tokens at least")
    threads = settings.threads or processors.usable_cores()
    yardstick, others = quality.formats()
    with Bars() as progress:
        reference = quality.score(model, yardstick, text, threads, progress)
        costs = [
            quality.compare(how.name, quality.score(model, how, text, threads, progress), reference) for how in others
        ]
    perplexity = math.exp(reference.loss.mean())
    return {"tokens": reference.loss.size, "reference": yardstick.name, "perplexity": perplexity}, costs


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _print(reference: dict[str, Any], costs: list[Cost]) -> None:
    print(f"{reference['tokens']} tokens; {reference['reference']}: perplexity {reference['perplexity']:.3f}\n")
    rows = [
        (
            cost.format,
            f"{cost.perplexity:.3f}",
            f"{100 * cost.cost:+.2f}",
            f"{100 * cost.low:+.2f} … {100 * cost.high:+.2f}",
            f"{100 * cost.top1_agreement:.1f}",
        )
        for cost in costs
    ]
    output.table(("format", "perplexity", "cost %", "95 % interval", "same best token %"), rows)
