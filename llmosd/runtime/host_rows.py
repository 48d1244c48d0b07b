"""What the gather graph leaves to the host: storing the K and V rows of a run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.page_pool import HostPool
from llmosd.runtime.session import BoundSession

Int32 = NDArray[np.int32]
F32 = NDArray[np.float32]


class HostRows:
    """The rows of one run at a time: `bind`, the run, `store`."""

    def __init__(self, geometry: Geometry, pool: HostPool) -> None:
        self._geometry = geometry
        self._pool = pool
        self._rows: list[tuple[F32, F32]] = []  # keys and values of each layer

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
