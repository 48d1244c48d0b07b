"""ONNX Runtime GenAI's model, run as its generator runs it: one buffer of K/V that is past and present at once.

    python genai_child.py MODEL_DIRECTORY SCORING_DIRECTORY THREADS

The generator itself is left out because it can fill a batch only by computing all of it, which at 32 sequences of
1,500 tokens takes minutes. It has no way to mix prompts into a batch: `mixed` is a prefill and then a step.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from child import prompt, serve
from numpy.typing import NDArray

ROOM = 128


class Batch:
    """K/V of `batch` sequences, bound once to a session as past and as present."""

    def __init__(self, session: ort.InferenceSession, batch: int, capacity: int) -> None:
        self._session, self._size = session, batch
        self._binding = session.io_binding()
        self._binding.bind_output("logits")  # first, and so the first of the outputs
        self.caches = []
        for port in session.get_inputs():
            if port.name.startswith("past_key_values"):
                cache = np.zeros((batch, port.shape[1], capacity, 64), np.float32)
                value = ort.OrtValue.ortvalue_from_numpy(cache)
                self._binding.bind_ortvalue_input(port.name, value)
                self._binding.bind_ortvalue_output(port.name.replace("past_key_values", "present"), value)
                self.caches.append(cache)

    def run(self, tokens: NDArray[np.int64], past: int) -> NDArray[np.float32]:
        """Feed tokens [batch, n] after `past`; logits [batch, n or 1, vocabulary]."""
        mask = np.ones((self._size, past + tokens.shape[1]), np.int64)
        self._binding.bind_cpu_input("input_ids", tokens)
        self._binding.bind_cpu_input("attention_mask", mask)
        self._binding.bind_output("logits")
        self._session.run_with_iobinding(self._binding)
        logits: NDArray[np.float32] = self._binding.get_outputs()[0].numpy()
        return logits


class GenAi:
    def __init__(self, path: str, scoring: str, threads: int) -> None:
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._session, self._scoring = self._load(path), scoring
        self._scorer: Batch | None = None
        self._batch: Batch | None = None
        self._prompt = Batch(self._session, 1, 2048)
        self._size = self._filled = 0

    def _load(self, path: str) -> ort.InferenceSession:
        return ort.InferenceSession(f"{path}/model.onnx", self._options, ["CPUExecutionProvider"])

    def fill(self, batch: int, context: int) -> None:
        self._batch = None
        if not batch:
            return
        self._prompt.run(np.array([prompt(context)]), 0)
        self._batch = Batch(self._session, batch, context + ROOM)
        for source, target in zip(self._prompt.caches, self._batch.caches, strict=True):
            target[:, :, :context] = source[:, :, :context]
        self._size, self._filled = batch, context

    def rewind(self) -> None:
        """The mask says what is past; nothing is held."""

    def decode(self, steps: int) -> None:
        assert self._batch
        tokens = np.full((self._size, 1), 1000)
        for step in range(steps):
            tokens = self._batch.run(tokens, self._filled + step)[:, -1].argmax(axis=1)[:, None]

    def prefill(self, tokens: int) -> None:
        self._prompt.run(np.array([prompt(tokens)]), 0)[:, -1].argmax(axis=1)

    def mixed(self, tokens: int) -> None:
        self.prefill(tokens)
        self.decode(1)

    def score(self, window: list[int]) -> list[float]:
        if self._scorer is None:
            self._scorer = Batch(self._load(self._scoring), 1, len(window))
        logits: NDArray[Any] = self._scorer.run(np.array([window]), 0)[0, :-1].astype(np.float64)
        return list(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), window[1:]])


if __name__ == "__main__":
    serve(lambda: GenAi(sys.argv[1], sys.argv[2], int(sys.argv[3])))
