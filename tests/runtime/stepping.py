"""Feed sequences to a PagedModel in any chunking and batching, with pages in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.paged_model import PagedModel

F32 = NDArray[np.float32]


@dataclass
class Stream:
    """Tokens of one sequence, the pages it may fill, and how many tokens are in them."""

    tokens: Sequence[int]
    pages: Sequence[int]
    past: int = 0


def step(model: PagedModel, chunks: Sequence[tuple[Stream, int]]) -> list[F32]:
    """Feed the next `n` tokens of each stream in one run; logits after every one of them, stream by stream."""
    parts = [stream.tokens[stream.past : stream.past + n] for stream, n in chunks]
    cumulative = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    past = np.array([stream.past for stream, _ in chunks], np.int32)
    table = np.full((len(chunks), max(len(stream.pages) for stream, _ in chunks)), -1, np.int32)
    for row, (stream, _) in enumerate(chunks):
        table[row, : len(stream.pages)] = stream.pages
    tokens = np.array([token for part in parts for token in part], np.int64)
    logits = model.run(tokens, cumulative, past, table, np.arange(len(tokens)))
    for stream, n in chunks:
        stream.past += n
    return [rows.copy() for rows in np.split(logits, cumulative[1:-1])]


def prefill(model: PagedModel, tokens: Sequence[int], pages: Sequence[int], sizes: Sequence[int] = ()) -> F32:
    """Logits of all tokens of one sequence fed alone, in chunks of `sizes` and then the rest."""
    stream = Stream(tokens, pages)
    rows = [step(model, [(stream, size)])[0] for size in sizes]
    if stream.past < len(tokens):
        rows += step(model, [(stream, len(tokens) - stream.past)])
    return np.concatenate(rows)


def poison(model: PagedModel) -> None:
    """Fill the whole pool with NaN: what has not been written must not be read."""
    for pool in (*model.keys, *model.values):
        pool.fill(np.nan if pool.dtype.kind == "f" else -1)  # as a float32 scale, four such bytes are NaN
