"""What the gather graph leaves to the host: checking its pages before a run, storing its K and V rows after."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmosd.errors import StepError
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.page_pool import HostPool
from llmosd.runtime.session import BoundSession

Int32 = NDArray[np.int32]
F32 = NDArray[np.float32]


class HostRows:
    """The rows of one run at a time: `check`, `bind`, the run, `store`."""

    def __init__(self, geometry: Geometry, pool: HostPool) -> None:
        self._geometry = geometry
        self._pool = pool
        self._rows: list[tuple[F32, F32]] = []  # keys and values of each layer

    def check(self, cumulative: Int32, past: Int32, table: Int32) -> None:
        """Raises StepError where a sequence needs a page that its row of the table or the pool does not have."""
        ends = past + np.diff(cumulative)
        used = -(-ends // self._pool.page_tokens)
        if used.max(initial=0) > table.shape[1]:
            raise StepError(
                f"a sequence of {ends.max()} tokens needs {used.max()} pages of {table.shape[1]} in its row"
            )
        named = table[np.arange(table.shape[1]) < used[:, None]]
        if named.size and (named.min() < 0 or named.max() >= self._pool.pages):
            raise StepError(f"the page table names a page outside 0 … {self._pool.pages - 1}")

    def bind(self, session: BoundSession, tokens: int) -> None:
        shape = (tokens, self._geometry.kv_heads, self._geometry.head_dim)
        self._rows = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in range(self._geometry.layers)]
        for layer, (keys, values) in enumerate(self._rows):
            session.bind_output(f"key_rows.{layer}", keys)
            session.bind_output(f"value_rows.{layer}", values)

    def store(self, cumulative: Int32, past: Int32, table: Int32) -> None:
        sequence = np.repeat(np.arange(len(past)), np.diff(cumulative))
        position = np.arange(len(sequence)) - cumulative[sequence] + past[sequence]
        page, slot = table[sequence, position // self._pool.page_tokens], position % self._pool.page_tokens
        for layer, (keys, values) in enumerate(self._rows):
            self._pool.keys[layer][page, :, :, slot] = keys
            self._pool.values[layer][page, :, slot, :] = values
