"""A step's sequences as the packed ragged arrays that the graph takes.

Written through `array`, read through numpy: after a run the caches hold weights, and each numpy function that is used
costs the loading of its code.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from llmosd.types import SequencePlan

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Packed:
    """Arrays of one set of sizes: tokens, sequences, pages of the longest one, rows that need logits."""

    def __init__(self, tokens: int, sequences: int, pages: int, rows: int) -> None:
        self._tokens, self._rows, self._streams = _zeros("q", tokens), _zeros("q", rows), _zeros("q", rows)
        self._cumulative, self._past = _zeros("i", sequences + 1), _zeros("i", sequences)
        self._pages = _zeros("i", sequences * pages)
        self.token_ids: Int64 = np.frombuffer(self._tokens, np.int64)
        self.cumulative_lengths: Int32 = np.frombuffer(self._cumulative, np.intc)
        self.past_lengths: Int32 = np.frombuffer(self._past, np.intc)
        self.page_table: Int32 = np.frombuffer(self._pages, np.intc).reshape(sequences, pages)
        self.logit_rows: Int64 = np.frombuffer(self._rows, np.int64)
        self.streams: Int64 = np.frombuffer(self._streams, np.int64)

    def fill(self, tokens: list[int], ends: list[int], past: list[int]) -> None:
        self._tokens[:] = array("q", tokens)
        self._cumulative[1:] = array("i", ends)
        self._past[:] = array("i", past)

    def fill_rows(self, rows: list[int], streams: list[int]) -> None:
        if rows:  # memory that numpy sees takes no empty slice
            self._rows[:] = array("q", rows)
            self._streams[:] = array("q", streams)

    def fill_pages(self, parts: tuple[SequencePlan, ...], table: array[int], columns: int) -> None:
        """From the flat `table` with rows of `columns`."""
        width, pages, place = self.page_table.shape[1], self._pages, 0
        for part in parts:
            first = part.row * columns
            pages[place : place + width] = table[first : first + width]
            place += width


class Packer:
    """Reads the kernel's page table; arrays are kept, and stay bound, while a step has the sizes of the last."""

    def __init__(self, page_table: array[int], columns: int, page_tokens: int) -> None:
        self._table, self._columns = page_table, columns
        self._page_tokens = page_tokens
        self._sizes = (0, 0, 0, 0)
        self._packed: Packed | None = None

    def pack(self, parts: tuple[SequencePlan, ...], streams: list[int]) -> Packed:
        """Arrays that the next call may overwrite. `parts` is not empty.

        Logits are wanted of a sampled sequence's last row, and of those before its guesses; `streams` has an entry for
        each of these rows.
        """
        tokens, ends, past, rows = list[int](), list[int](), list[int](), list[int]()
        longest = 0
        for part in parts:
            tokens += part.tokens
            end = len(tokens)
            ends.append(end)
            past.append(part.past)
            longest = max(longest, part.past + len(part.tokens))
            if part.sample:
                rows += range(end - part.drafts - 1, end)
        packed = self._arrays((len(tokens), len(parts), -(-longest // self._page_tokens), len(rows)))
        packed.fill(tokens, ends, past)
        packed.fill_rows(rows, streams)
        packed.fill_pages(parts, self._table, self._columns)
        return packed

    def _arrays(self, sizes: tuple[int, int, int, int]) -> Packed:
        if self._packed is None or sizes != self._sizes:
            self._packed, self._sizes = Packed(*sizes), sizes
        return self._packed


def _zeros(kind: str, count: int) -> array[int]:
    return array(kind, [0]) * count
