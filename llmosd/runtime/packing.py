"""A step's sequences as the packed ragged arrays that the graph takes.

Written through `array`, read through numpy: after a run the caches hold weights, and each numpy function that is used
costs the loading of its code.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmosd.types import SequencePlan

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """Of T tokens in B sequences, of which R rows need logits; P pages reach for the longest sequence."""

    token_ids: Int64  # [T]
    cumulative_lengths: Int32  # [B + 1]
    past_lengths: Int32  # [B]
    page_table: Int32  # [B, P]
    logit_rows: Int64  # [R]
    streams: Int64  # [R]


class Packer:
    """Reads the kernel's page table. An array of the same shape is the same object as long as its memory suffices."""

    def __init__(self, page_table: array[int], columns: int, page_tokens: int) -> None:
        self._table, self._columns = page_table, columns
        self._page_tokens = page_tokens
        self._tokens, self._rows, self._streams = _Memory("q"), _Memory("q"), _Memory("q")
        self._cumulative, self._past, self._pages = _Memory("i"), _Memory("i"), _Memory("i")

    def pack(self, parts: tuple[SequencePlan, ...], streams: list[int]) -> Packed:
        """Arrays that the next call may overwrite. `parts` is not empty.

        Logits are wanted of a sampled sequence's last row, and of those before its guesses; `streams` has an entry for
        each of these rows.
        """
        tokens, ends, past, rows = list[int](), [0], list[int](), list[int]()
        longest = 0
        for part in parts:
            tokens += part.tokens
            end = len(tokens)
            ends.append(end)
            past.append(part.past)
            longest = max(longest, part.past + len(part.tokens))
            if part.sample:
                rows += range(end - part.drafts - 1, end)
        return Packed(
            self._tokens.hold(tokens),
            self._cumulative.hold(ends),
            self._past.hold(past),
            self._hold_pages(parts, -(-longest // self._page_tokens)),
            self._rows.hold(rows),
            self._streams.hold(streams),
        )

    def _hold_pages(self, parts: tuple[SequencePlan, ...], width: int) -> Int32:
        view, pages, place = self._pages.view(len(parts), width), self._pages.elements, 0
        for part in parts:
            first = part.row * self._columns
            pages[place : place + width] = self._table[first : first + width]
            place += width
        return view


class _Memory:
    """Of one input: it grows at need, and what has had a shape once costs nothing to bind again."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.elements = array(kind, [0])
        self._views: dict[tuple[int, ...], npt.NDArray[Any]] = {}

    def hold(self, values: list[int]) -> npt.NDArray[Any]:
        view = self.view(len(values))
        if values:  # memory that numpy sees takes no empty slice
            self.elements[: len(values)] = array(self._kind, values)
        return view

    def view(self, *shape: int) -> npt.NDArray[Any]:
        """The first elements; what they were is lost where the memory has to grow."""
        view = self._views.get(shape)
        return self._make(shape) if view is None else view

    def _make(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        count = math.prod(shape)
        if count > len(self.elements):
            self.elements = array(self._kind, [0]) * max(count, 2 * len(self.elements))
            self._views.clear()
        view = self._views[shape] = np.frombuffer(self.elements, f"i{self.elements.itemsize}", count).reshape(shape)
        return view
