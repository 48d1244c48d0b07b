"""What a token costs on this machine: time of the engine for one of a prompt, and for one generated in a batch."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from llmosd.runtime.paged_model import PagedModel
from llmosd.types import Nanoseconds

PROMPT, SEQUENCES, CONTEXT = 64, 4, 64  # tokens of a prompt; a batch of decodes and what each has before it
RUNS = 3


def measure(model: PagedModel) -> tuple[Nanoseconds, Nanoseconds]:
    """Medians of a few steps; they write to pages that nothing is in yet. Where these are too few, fewer tokens."""
    rows = min(SEQUENCES, model.pages)
    context = min(CONTEXT, model.pages // rows * model.page_tokens - 1)
    prompt = min(PROMPT, model.pages * model.page_tokens)
    return _step_ns(model, 1, prompt, 0) // prompt, _step_ns(model, rows, 1, context) // rows


def _step_ns(model: PagedModel, rows: int, tokens: int, past: int) -> Nanoseconds:
    columns = -(-(past + tokens) // model.page_tokens)
    step = (
        np.full(rows * tokens, 100),
        np.arange(rows + 1, dtype=np.int32) * np.int32(tokens),
        np.full(rows, past, np.int32),
        np.arange(rows * columns, dtype=np.int32).reshape(rows, columns),
        np.arange(1, rows + 1) * tokens - 1,
    )
    times = list[int]()
    for _ in range(1 + RUNS):
        start = time.perf_counter_ns()
        model.run(*step)
        times.append(time.perf_counter_ns() - start)
    return round(median(times[1:]))
