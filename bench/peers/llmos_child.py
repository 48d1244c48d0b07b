"""LLMOS's own engine as the daemon runs it, without HTTP: kernel, executor and model, with the default settings.

python llmos_child.py HOME MODEL THREADS
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
from child import prompt, serve
from numpy.typing import NDArray

from llmosd.config import Config
from llmosd.runtime.backend import best_page_tokens, choose_backend, choose_kv_format
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import find
from llmosd.runtime.paged_model import PagedModel
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import RequestSpec, Sampling

DEFAULTS = Config()
ROOM, LONGEST, SCORED = 128, 2048, 128
_PLAIN_OPTIONS = onnxruntime.SessionOptions


class PausableModel(PagedModel):
    """A model that can be told to compute nothing, so that a kernel reaches a state whose K/V is there already."""

    paused = False

    def run(
        self,
        token_ids: NDArray[np.int64],
        cumulative_lengths: NDArray[np.int32],
        past_lengths: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int64],
        streams: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        if self.paused:
            logits = self._session.bind_logits(len(logit_rows))
            logits[:] = 0
            self._session.tokens[:] = 0
            return logits
        return super().run(token_ids, cumulative_lengths, past_lengths, page_table, logit_rows, streams)


class Llmos:
    def __init__(self, home: Path, model: str, threads: int) -> None:
        self._installed = find(home, model)
        self._backend, _ = choose_backend(DEFAULTS.backend, strict=False)
        ensure_graph(self._installed, self._backend, DEFAULTS.weights, lambda stage, done, total: None)
        self._page = best_page_tokens(self._backend, self._installed.geometry)
        self._tokenizer = self._installed.load_tokenizer()
        self._threads = threads
        self._model: PausableModel | None = None
        self._batch = self._context = 0
        self.fill(0, 1)

    # ---- the comparison's operations

    def fill(self, batch: int, context: int) -> None:
        """One prompt is computed; its pages are copied to each sequence's own."""
        self._batch, self._context = batch, context
        self._load()
        if not batch:
            return
        self._start(1)
        pages = self._pages(0)
        self.rewind()
        assert self._pages(0) == pages, "a fresh kernel hands out the same pages"
        for sequence in range(1, batch):
            for source, target in zip(pages, self._pages(sequence), strict=True):
                self.model.copy_page(source, target)

    def rewind(self) -> None:
        self.model.paused = True
        self._start(self._batch)
        self.model.paused = False

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def prefill(self, tokens: int) -> None:
        self._kernel, self._executor = self._engine(DEFAULTS.token_budget)
        self._submit("prompt", prompt(tokens))
        self._until_first("prompt")

    def mixed(self, tokens: int) -> None:
        self._submit("prompt", prompt(tokens))
        self._until_first("prompt")

    def score(self, window: list[int]) -> list[float]:
        losses: list[float] = []
        table = np.arange(self.model.pages, dtype=np.int32)[None]
        for start in range(0, len(window), SCORED):
            chunk = np.array(window[start : start + SCORED])
            ends, past = np.array([0, len(chunk)], np.int32), np.array([start], np.int32)
            rows = np.arange(len(chunk))
            logits = self.model.run(chunk, ends, past, table, rows).astype(np.float64)
            targets = np.array(window[start + 1 : start + SCORED + 1])
            logits = logits[: len(targets)]
            losses += list(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets])
        return losses

    def profile(self, method: str, batch: int, context: int, count: int) -> dict[str, float]:
        """Milliseconds by operator of one run of the operation's last step, from ONNX Runtime's profiler."""

        def profiling() -> onnxruntime.SessionOptions:
            options = _PLAIN_OPTIONS()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/step"
            return options

        with tempfile.TemporaryDirectory() as folder:
            self.model.close()
            self._model = None
            with patch.object(onnxruntime, "SessionOptions", profiling):
                self.fill(batch, context)
            self.rewind()
            getattr(self, method)(count)
            events = json.loads(Path(self.model._session.inference.end_profiling()).read_text())
        return by_operator(events)

    # ---- how

    @property
    def model(self) -> PausableModel:
        assert self._model
        return self._model

    def _load(self) -> None:
        """A pool for all sequences and one prompt; loaded again where it was smaller."""
        columns = -(-(max(self._context, LONGEST) + ROOM) // self._page)
        pages = (self._batch + 1) * columns
        if self._model and self._model.pages == pages:
            return
        if self._model:
            self._model.close()
        model = PausableModel.load(
            self._installed,
            backend=self._backend,
            weights=DEFAULTS.weights,
            pages=pages,
            page_tokens=self._page,
            threads=self._threads,
            spin=DEFAULTS.spin,
            kv_format=choose_kv_format(self._backend, DEFAULTS.kv_format),
        )
        assert isinstance(model, PausableModel)
        self._model = model

    def _engine(self, token_budget: int) -> tuple[Kernel, OnnxExecutor]:
        slots, context = self._batch + 1, self.model.pages // (self._batch + 1) * self._page
        limits = Limits(slots, max(token_budget, slots), 100, context, self._page, self.model.pages)
        kernel = Kernel(limits, POLICIES[DEFAULTS.policy]())
        return kernel, OnnxExecutor(self.model, self._tokenizer, kernel.page_table, kernel.columns)

    def _start(self, sequences: int) -> None:
        """A fresh kernel with so many sequences that have their prompt and their first token, in one step."""
        self._kernel, self._executor = self._engine((self._batch + 1) * (self._context + ROOM))
        for number in range(sequences):
            self._submit(str(number), [number + 2, *prompt(self._context)[1:]])
        if sequences:
            self._step()

    def _submit(self, name: str, tokens: list[int]) -> None:
        sampling = Sampling(temperature=0.0, ignore_eos=True, max_tokens=ROOM)
        self._kernel.submit(RequestSpec(name, "m", tokens, sampling), time.monotonic_ns())

    def _step(self) -> None:
        plan = self._kernel.plan(time.monotonic_ns())
        assert plan is not None
        self._kernel.commit(plan, self._executor.execute(plan), time.monotonic_ns())

    def _until_first(self, name: str) -> None:
        while self._kernel.view(name).first_token is None:
            self._step()

    def _pages(self, sequence: int) -> list[int]:
        """Pages of a sequence's prompt: row by row, sequences are in the order they were submitted."""
        start = sequence * self._kernel.columns
        return list(self._kernel.page_table[start : start - (-self._context // self._page)])


def by_operator(events: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of the last run in a profile, the longest operator first."""
    start = max(event["ts"] for event in events if event["name"] == "model_run")
    spent: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= start and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3
    return dict(spent.most_common())


if __name__ == "__main__":
    serve(lambda: Llmos(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
