"""A step's sequences as the packed ragged arrays that the graph takes.

Written through `array`, read through numpy: after a run the caches hold weights, and each numpy function that is used
costs the loading of its code.
"""

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
        self._tokens, self._rows = _zeros("q", tokens), _zeros("q", rows)
        self._cumulative, self._past = _zeros("i", sequences + 1), _zeros("i", sequences)
        self._pages = _zeros("i", sequences * pages)
        self.token_ids: Int64 = np.frombuffer(self._tokens, np.int64)
        self.cumulative_lengths: Int32 = np.frombuffer(self._cumulative, np.intc)
        self.past_lengths: Int32 = np.frombuffer(self._past, np.intc)
        self.page_table: Int32 = np.frombuffer(self._pages, np.intc).reshape(sequences, pages)
        self.logit_rows: Int64 = np.frombuffer(self._rows, np.int64)

    def fill(self, parts: tuple[SequencePlan, ...], ends: list[int], rows: list[int]) -> None:
        """All but the page table."""
        self._tokens[:] = array("q", chain.from_iterable(part.tokens for part in parts))
        self._cumulative[1:] = array("i", ends)
        self._past[:] = array("i", [part.past for part in parts])
        if rows:  # memory that numpy sees takes no empty slice
            self._rows[:] = array("q", rows)

    def fill_pages(self, parts: tuple[SequencePlan, ...], table: array[int], columns: int) -> None:
        """From the flat `table` with rows of `columns`."""
        width = self.page_table.shape[1]
        for place, part in enumerate(parts):
            first = part.row * columns
            self._pages[place * width : (place + 1) * width] = table[first : first + width]


class Packer:
    """Reads the kernel's page table; arrays are kept, and stay bound, while a step has the sizes of the last."""

    def __init__(self, page_table: array[int], columns: int, page_tokens: int) -> None:
        self._table, self._columns = page_table, columns
        self._page_tokens = page_tokens
        self._sizes = (0, 0, 0, 0)
        self._packed: Packed | None = None

    def pack(self, parts: tuple[SequencePlan, ...]) -> Packed:
        """Arrays that the next call may overwrite. `parts` is not empty."""
        ends = list(accumulate(len(part.tokens) for part in parts))
        longest = max(part.past + len(part.tokens) for part in parts)
        rows = [row for part, end in zip(parts, ends, strict=True) for row in _logit_rows(part, end)]
        packed = self._arrays((ends[-1], len(parts), -(-longest // self._page_tokens), len(rows)))
        packed.fill(parts, ends, rows)
        packed.fill_pages(parts, self._table, self._columns)
        return packed

    def _arrays(self, sizes: tuple[int, int, int, int]) -> Packed:
        if self._packed is None or sizes != self._sizes:
            self._packed, self._sizes = Packed(*sizes), sizes
        return self._packed


def _logit_rows(part: SequencePlan, end: int) -> range:
    """Of its rows, which end before `end`, the last one if it is sampled, and those before guesses."""
    return range(end - part.drafts - part.sample, end)


def _zeros(kind: str, count: int) -> array[int]:
    return array(kind, [0]) * count
