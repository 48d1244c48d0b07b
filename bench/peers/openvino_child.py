"""OpenVINO's continuous batching engine without its scheduler: its paged-attention model, fed step by step.

    python openvino_child.py openvino_model.xml THREADS

The model is what `openvino_genai` makes of a GGUF file. It is transformed as its ContinuousBatchingPipeline does (paged
attention; logits of chosen rows only), and page tables are laid out here, because the pipeline offers no way to fill
32 sequences with 1,500 tokens of their own but to compute them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from child import prompt, serve
from numpy.typing import NDArray
from openvino import opset13
from openvino._offline_transformations import paged_attention_transformation

PAGE, ROOM = 32, 128  # tokens of a page of the CPU plugin; tokens that each sequence may grow by
LONGEST = 1536


class OpenVino:
    """K/V are held as the CPU plugin chooses by default (8 bits)."""

    def __init__(self, path: str, threads: int) -> None:
        core = ov.Core()
        model = core.read_model(path)
        paged_attention_transformation(model)
        _choose_rows(model)
        self._model = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._request = self._model.create_infer_request()
        self._caches: dict[str, ov.Tensor] = {}
        self._sequences = self._filled = self._pages = 0
        self.fill(0, 1)

    def fill(self, batch: int, context: int) -> None:
        """K/V are those of one prompt, copied to each sequence's own pages."""
        self._pages = -(-(max(context, LONGEST) + ROOM) // PAGE)
        self._allocate((batch + 1) * self._pages)
        self._sequences, self._filled = 0, 0
        self._run([(0, prompt(context))], [0])
        used = -(-context // PAGE)
        for cache in self._caches.values():
            pages = cache.data
            for sequence in range(1, batch):
                start = sequence * self._pages
                pages[start : start + used] = pages[:used]
        self._sequences, self._filled = batch, context

    def _allocate(self, pages: int) -> None:
        for port in self._model.inputs:
            if "_cache." in port.any_name:
                shape = [pages, *(size.get_length() for size in list(port.partial_shape)[1:])]
                tensor = ov.Tensor(port.element_type, ov.Shape(shape))
                tensor.data[:] = 0
                self._caches[port.any_name] = tensor
                self._request.set_tensor(port.any_name, tensor)

    def rewind(self) -> None:
        """Page tables say what is past; nothing is held."""

    def decode(self, steps: int) -> None:
        tokens = [1000] * self._sequences
        for step in range(steps):
            parts = [(self._filled + step, [token]) for token in tokens]
            tokens = self._run(parts, range(self._sequences)).argmax(axis=1).tolist()

    def prefill(self, tokens: int) -> None:
        self._run([(0, prompt(tokens))], [self._sequences]).argmax(axis=1)

    def mixed(self, tokens: int) -> None:
        parts = [(self._filled, [1000])] * self._sequences + [(0, prompt(tokens))]
        self._run(parts, range(self._sequences + 1)).argmax(axis=1)

    def score(self, window: list[int]) -> list[float]:
        logits = self._run([(0, window)], [self._sequences], range(len(window)))[:-1].astype(np.float64)
        return list(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), window[1:]])

    def _run(
        self, parts: Sequence[tuple[int, list[int]]], owners: Sequence[int], rows: Sequence[int] = ()
    ) -> NDArray[np.float32]:
        """One step over (past, tokens) of the sequences `owners`; logits of `rows`, else of each last token."""
        past = np.array([start for start, _ in parts], np.int32)
        lengths = np.array([len(tokens) for _, tokens in parts], np.int32)
        ends = np.cumsum(lengths, dtype=np.int32)
        used = -(-(past + lengths) // PAGE)
        tables = [owner * self._pages + np.arange(count) for owner, count in zip(owners, used, strict=True)]
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.concatenate([tokens for _, tokens in parts]).astype(np.int64),
            "position_ids": np.concatenate([start + np.arange(len(t)) for start, t in parts]).astype(np.int64),
            "max_context_len": np.array((past + lengths).max(), np.int32),
            "past_lens": past,
            "subsequence_begins": np.concatenate([[0], ends]).astype(np.int32),
            "block_indices": np.concatenate(tables).astype(np.int32),
            "block_indices_begins": np.concatenate([[0], np.cumsum(used)]).astype(np.int32),
            "chosen_rows": np.array(rows if len(rows) else ends - 1, np.int64),
        }
        self._request.infer(inputs, share_inputs=True)
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(-1, logits.shape[-1])


def _choose_rows(model: ov.Model) -> None:
    """Compute logits of the rows named by a new input `chosen_rows` only."""
    product = model.output(0).get_node().input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    chosen = opset13.parameter([-1], np.int64, "chosen_rows")
    chosen.output(0).set_names({"chosen_rows"})
    source = product.input_value(0)
    axis = next(i for i, size in enumerate(source.partial_shape) if size.is_dynamic)
    product.input(0).replace_source_output(opset13.gather(source, chosen, opset13.constant(axis)).output(0))
    model.add_parameters([chosen])
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    serve(lambda: OpenVino(sys.argv[1], int(sys.argv[2])))
