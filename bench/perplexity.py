"""What a format costs in quality: perplexity against float32 on fixed public-domain text.

Each text is cut into windows of 512 tokens. A window's tokens are scored from the second on by the float32 graph and
by each other format, and the difference of log loss is taken token by token. The cost is exp(mean difference) − 1.
Tokens of one window depend on each other, so the 95 % interval is Student's over the means of whole windows.

    python bench/perplexity.py [--home DIR] [--windows N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llmosd import config
from llmosd.runtime import native
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.paged_model import Backend, KvFormat, PagedModel
from llmosd.types import WeightFormat

TEXT = Path(__file__).parent / "text"
WINDOW, CHUNK, PAGE_TOKENS = 512, 128, 64
BUDGET = 0.005  # what a format that serves by default may cost

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """One way of running the model."""

    backend: Backend
    weights: WeightFormat
    kv: KvFormat

    @property
    def name(self) -> str:
        return f"{self.backend}, {self.weights} weights, {self.kv} K/V"


@dataclass(frozen=True)
class Cost:
    """A format against float32 on the same tokens; `low` and `high` bound the 95 % interval of `cost`."""

    format: str
    perplexity: float
    cost: float
    low: float
    high: float
    top1_agreement: float


@dataclass(frozen=True)
class Scores:
    """Per window and scored token: log loss in nats, and the token the format would have chosen."""

    loss: F64  # [windows, WINDOW - 1]
    best: NDArray[np.int64]


def windows(model: InstalledModel) -> NDArray[np.int64]:
    """Whole windows of every text, [windows, WINDOW]."""
    tokenizer = model.load_tokenizer()
    parts = []
    for path in sorted(TEXT.glob("*.txt")):
        tokens = tokenizer.encode(path.read_text("utf-8"), special=False)
        whole = len(tokens) // WINDOW
        parts.append(np.array(tokens[: whole * WINDOW], np.int64).reshape(whole, WINDOW))
    return np.concatenate(parts)


def score(model: InstalledModel, how: Format, text: NDArray[np.int64], threads: int) -> Scores:
    ensure_graph(model, how.backend, how.weights, lambda stage, done, total: None)
    engine = PagedModel.load(
        model,
        backend=how.backend,
        weights=how.weights,
        pages=WINDOW // PAGE_TOKENS,
        page_tokens=PAGE_TOKENS,
        threads=threads,
        spin=True,
        kv_format=how.kv,
    )
    rows = [_score_window(engine, window) for window in track(text, how.name, console=Console(stderr=True))]
    engine.close()
    return Scores(np.stack([loss for loss, _ in rows]), np.stack([best for _, best in rows]))


def _score_window(engine: PagedModel, window: NDArray[np.int64]) -> tuple[F64, NDArray[np.int64]]:
    table = np.arange(engine.pages, dtype=np.int32)[None]
    losses, best = [], []
    for start in range(0, WINDOW, CHUNK):
        past, ends = np.array([start], np.int32), np.array([0, CHUNK], np.int32)
        logits = engine.run(window[start : start + CHUNK], ends, past, table, np.arange(CHUNK))
        targets = window[start + 1 : start + CHUNK + 1]
        losses.append(log_loss(logits[: len(targets)], targets))
        best.append(logits[: len(targets)].argmax(axis=1))
    return np.concatenate(losses), np.concatenate(best)


def log_loss(logits: F32, targets: NDArray[np.int64]) -> F64:
    top = logits.max(axis=1)
    total = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    loss: F64 = np.log(total) + top - logits[np.arange(len(targets)), targets]
    return loss


def compare(name: str, scores: Scores, reference: Scores) -> Cost:
    """Paired: the same tokens, so that what makes text hard cancels out."""
    means = (scores.loss - reference.loss).mean(axis=1)
    half = student_95(len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return Cost(
        format=name,
        perplexity=math.exp(scores.loss.mean()),
        cost=math.expm1(means.mean()),
        low=math.expm1(means.mean() - half),
        high=math.expm1(means.mean() + half),
        top1_agreement=float(np.mean(scores.best == reference.best)),
    )


def student_95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t (Cornish-Fisher expansion, good to 0.2 % from 10 degrees on)."""
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def formats() -> tuple[Format, list[Format]]:
    """The float32 yardstick, and the formats to be measured; the default one first."""
    return Format("native", "float32", "float32"), [
        Format("native", "file", "float16"),
        Format("native", "file", "int8"),
        Format("native", "file", "float32"),
        Format("native", "float32", "float16"),
        Format("gather", "file", "float16"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="perplexity cost of each format against float32")
    parser.add_argument("--home", type=Path, help="data directory with the model (default: as llmosd)")
    parser.add_argument("--windows", type=int, help="score only the first N windows of 512 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to FILE")
    args = parser.parse_args()
    settings = config.load({"home": args.home} if args.home else {})
    model = find(settings.home, settings.model)
    text = windows(model)[: args.windows]
    yardstick, others = formats()
    reference = score(model, yardstick, text, args.threads)
    costs = [compare(how.name, score(model, how, text, args.threads), reference) for how in others]
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
