"""What a format costs in quality: perplexity and agreement against float32, token by token on the same text.

Each text is cut into windows, of 512 tokens unless told otherwise. A window's tokens are scored from the second on by
the float32 graph and by each other format, and the difference of log loss is taken token by token. The cost is
exp(mean difference) − 1. Tokens of one window depend on each other, so the 95 % interval is Student's over the means of
whole windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from llmosd.resources import data_dir
from llmosd.runtime import native
from llmosd.runtime.backend import choose_kv_format
from llmosd.runtime.fetch import Progress
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import Backend, PagedModel
from llmosd.types import KvFormat, WeightFormat

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
    strict: bool = False

    @property
    def name(self) -> str:
        return f"{self.backend}, {self.weights} weights, {self.kv} K/V" + (", strict" if self.strict else "")


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

    loss: F64  # [windows, tokens of a window - 1]
    best: NDArray[np.int64]


def formats() -> tuple[Format, list[Format]]:
    """The float32 yardstick, and weights × K/V as this machine can run them; what serves by default comes first."""
    stock = Format("gather", "file", "float16")
    if not native.status().available:
        others = [Format("gather", "file", "float32"), Format("gather", "float32", "float16")]
        return Format("gather", "float32", "float32"), [stock, *others]
    default = choose_kv_format("native", "auto")
    kinds = sorted(get_args(KvFormat), key=lambda kind: kind != default)
    # Elsewhere strict gives the same bits.
    exact = [Format("native", "file", default, strict=True)] if native.status().isa == "amx" else []
    return Format("native", "float32", "float32"), [
        *(Format("native", "file", kind) for kind in kinds),
        *exact,
        *(Format("native", "float32", kind) for kind in kinds if kind != "float32"),
        stock,
    ]


def texts() -> Iterator[str]:
    """The texts that ship with the package, always in the same order."""
    for path in sorted(data_dir("text").glob("*.txt")):
        yield path.read_text("utf-8")


def windows(
    model: InstalledModel, sources: Iterable[str], count: int | None = None, size: int = WINDOW
) -> NDArray[np.int64]:
    """Whole windows of every text, [windows, size]; with `count`, so many, spread evenly over them."""
    tokenizer = model.load_tokenizer()
    parts = []
    for source in sources:
        tokens = tokenizer.encode(source, special=False)
        whole = len(tokens) // size
        parts.append(np.array(tokens[: whole * size], np.int64).reshape(whole, size))
    found: NDArray[np.int64] = np.concatenate(parts)
    if count is None or count >= len(found):
        return found
    return np.asarray(found[np.linspace(0, len(found) - 1, count).astype(int)])


def score(model: InstalledModel, how: Format, text: NDArray[np.int64], threads: int, progress: Progress) -> Scores:
    """Run a format over the windows. Raises ModelError where its graph cannot be had."""
    ensure_graph(model, how.backend, how.weights, progress)
    engine = PagedModel.load(
        model,
        backend=how.backend,
        weights=how.weights,
        pages=-(-text.shape[1] // PAGE_TOKENS),
        page_tokens=PAGE_TOKENS,
        threads=threads,
        spin=True,
        kv_format=how.kv,
        strict=how.strict,
    )
    rows = []
    for done, window in enumerate(text):
        progress(how.name, done, len(text))
        rows.append(_score_window(engine, window))
    progress(how.name, len(text), len(text))
    engine.close()
    return Scores(np.stack([loss for loss, _ in rows]), np.stack([best for _, best in rows]))


def _score_window(engine: PagedModel, window: NDArray[np.int64]) -> tuple[F64, NDArray[np.int64]]:
    table = np.arange(engine.pages, dtype=np.int32)[None]
    losses, best = [], []
    for start in range(0, len(window), CHUNK):
        chunk = window[start : start + CHUNK]
        past, ends = np.array([start], np.int32), np.array([0, len(chunk)], np.int32)
        logits = engine.run(chunk, ends, past, table, np.arange(len(chunk)))
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
