"""A step's sequences as the packed ragged arrays that the graph takes."""

from __future__ import annotations

from array import array
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from llmosd.types import SequencePlan

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Packed:
    """Arrays of one set of sizes: tokens, sequences, pages of the longest one, rows that need logits."""

    def __init__(self, tokens: int, sequences: int, pages: int, rows: int) -> None:
        self.token_ids: Int64 = np.zeros(tokens, np.int64)
        self.cumulative_lengths: Int32 = np.zeros(sequences + 1, np.int32)
        self.past_lengths: Int32 = np.zeros(sequences, np.int32)
        self.page_table: Int32 = np.zeros((sequences, pages), np.int32)
        self.logit_rows: Int64 = np.zeros(rows, np.int64)


class Packer:
    """Wraps the kernel's page table once; arrays are kept, and stay bound, while a step has the sizes of the last."""

    def __init__(self, page_table: array[int], rows: int, columns: int, page_tokens: int) -> None:
        self._table: Int32 = np.frombuffer(page_table, np.intc).reshape(rows, columns)
        self._page_tokens = page_tokens
        self._sizes = (0, 0, 0, 0)
        self._packed = Packed(*self._sizes)

    def pack(self, parts: tuple[SequencePlan, ...]) -> Packed:
        """Arrays that the next call may overwrite."""
        ends = list(accumulate(len(part.tokens) for part in parts))
        longest = max(part.past + len(part.tokens) for part in parts)
        logit_rows = [row for part, end in zip(parts, ends, strict=True) for row in _logit_rows(part, end)]
        packed = self._arrays((ends[-1], len(parts), -(-longest // self._page_tokens), len(logit_rows)))
        packed.token_ids[:] = list(chain.from_iterable(part.tokens for part in parts))
        packed.cumulative_lengths[1:] = ends
        packed.past_lengths[:] = [part.past for part in parts]
        packed.page_table[:] = self._table[[part.row for part in parts], : packed.page_table.shape[1]]
        packed.logit_rows[:] = logit_rows
        return packed

    def _arrays(self, sizes: tuple[int, int, int, int]) -> Packed:
        if sizes != self._sizes:
            self._packed, self._sizes = Packed(*sizes), sizes
        return self._packed


def _logit_rows(part: SequencePlan, end: int) -> range:
    """Of its rows, which end before `end`, the last one if it is sampled, and those before guesses."""
    return range(end - part.drafts - part.sample, end)
