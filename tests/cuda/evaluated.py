"""A graph for CUDA, run by ONNX's evaluator behind the interface of a PagedModel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.device_pool import attention_metadata
from llmosd.runtime.geometry import Geometry
from tests.cuda.operators import evaluator


class EvaluatedModel:
    """Pages are full of NaN at first, so that reading what was never written shows."""

    def __init__(self, graph: Path, geometry: Geometry, *, pages: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._evaluator = evaluator(graph)
        shape = (pages, page_tokens, geometry.kv_heads, geometry.head_dim)
        self._pools = {
            f"{kind}_cache.{layer}": np.full(shape, np.nan, np.float16)
            for layer in range(geometry.layers)
            for kind in ("key", "value")
        }

    def run(
        self,
        token_ids: NDArray[np.int64],
        cumulative_lengths: NDArray[np.int32],
        past_lengths: NDArray[np.int32],
        page_table: NDArray[np.int32],
        logit_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        feeds = {
            "token_ids": token_ids,
            "cumulative_lengths": cumulative_lengths,
            "past_lengths": past_lengths,
            "page_table": page_table,
            "logit_rows": logit_rows,
            "attention_metadata": attention_metadata(cumulative_lengths, past_lengths),
        }
        (logits,) = self._evaluator.run(None, feeds | self._pools)
        return logits
