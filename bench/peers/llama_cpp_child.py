"""llama.cpp through its C interface, with the bindings of the source distribution it was built from.

python llama_cpp_child.py MODEL.gguf THREADS
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import llama_cpp.llama_cpp as c
import numpy as np
from child import prompt, serve
from numpy.typing import NDArray

ROOM, BATCH, CONTEXT_STEP, LONGEST = 128, 2048, 256, 2048


class LlamaCpp:
    """Each sequence has a K/V stream of its own (`kv_unified` off); all else is as llama.cpp sets it by default."""

    def __init__(self, path: str, threads: int) -> None:
        c.llama_backend_init()
        self._quiet = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self._quiet, None)
        self._model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        self._vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._threads = threads
        self._batch = c.llama_batch_init(BATCH, 0, 1)
        self._context: c.llama_context_p | None = None
        self._sequences = self._filled = 0
        self._open(0, LONGEST)

    def _open(self, sequences: int, tokens: int) -> None:
        """A context for so many sequences of so many tokens, and one for a new prompt."""
        if self._context is not None:
            c.llama_free(self._context)
        parameters = c.llama_context_default_params()
        parameters.n_seq_max = sequences + 1
        parameters.n_ctx = (sequences + 1) * -(-(tokens + ROOM) // CONTEXT_STEP) * CONTEXT_STEP
        parameters.n_batch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = False
        parameters.no_perf = True
        self._context = c.llama_init_from_model(self._model, parameters)
        self._memory = c.llama_get_memory(self._context)
        self._sequences = sequences

    def fill(self, batch: int, context: int) -> None:
        self._open(batch, context if batch else LONGEST)
        self._filled = context
        if not batch:
            return
        self._feed([(token, place, 0) for place, token in enumerate(prompt(context))], [context - 1])
        for sequence in range(1, batch):
            c.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        self.decode(1)
        self.rewind()

    def rewind(self) -> None:
        for sequence in range(self._sequences):
            c.llama_memory_seq_rm(self._memory, sequence, self._filled, -1)
        c.llama_memory_seq_rm(self._memory, self._sequences, -1, -1)

    def decode(self, steps: int) -> None:
        tokens = [1000] * self._sequences
        for place in range(self._filled, self._filled + steps):
            rows = [(token, place, sequence) for sequence, token in enumerate(tokens)]
            tokens = self._feed(rows, range(len(rows))).argmax(axis=1).tolist()

    def prefill(self, tokens: int) -> None:
        rows = [(token, place, self._sequences) for place, token in enumerate(prompt(tokens))]
        self._feed(rows, [tokens - 1]).argmax(axis=1)

    def mixed(self, tokens: int) -> None:
        rows = [(1000, self._filled, sequence) for sequence in range(self._sequences)]
        rows += [(token, place, self._sequences) for place, token in enumerate(prompt(tokens))]
        self._feed(rows, [*range(self._sequences), len(rows) - 1]).argmax(axis=1)

    def score(self, window: list[int]) -> list[float]:
        self.rewind()
        rows = [(token, place, self._sequences) for place, token in enumerate(window)]
        logits = self._feed(rows, range(len(rows)))[:-1].astype(np.float64)
        return list(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), window[1:]])

    def _feed(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int]) -> NDArray[np.float32]:
        """Feed (token, position, sequence) triples; the logits of the wanted ones, [wanted, vocabulary]."""
        batch, chosen = self._batch, set(wanted)
        batch.n_tokens = len(rows)
        for index, (token, place, sequence) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index in chosen
        if status := c.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answers {status}")
        values = c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(ctypes.cast(values, ctypes.POINTER(ctypes.c_float)), (len(wanted), self._vocab))


if __name__ == "__main__":
    serve(lambda: LlamaCpp(sys.argv[1], int(sys.argv[2])))
