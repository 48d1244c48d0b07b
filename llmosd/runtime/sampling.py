"""Choosing the next token from each row of a step's logits.

The order of operations is the one Hugging Face and vLLM share: penalties, temperature, then the cuts (top-k, min-p,
top-p), each on what the one before it left, renormalised. Randomness is counter-based, `uniform(seed, choice,
position)`, and rows are worked on one by one, so neither the batch, nor chunking, nor preemption can change a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmosd.errors import StepError
from llmosd.runtime.distribution import NOT_FINITE, Distribution, Row, quantile
from llmosd.runtime.stream import NO_TOKEN, Stream, uniform


class Sampler(Protocol):
    """Draws tokens, each from its own row and stream alone; owns scratch memory. One thread only."""

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[int]:
        """The next token of each stream from its row of the logits [R, V]; streams do not move on.

        A row that holds NaN or whose largest logit is not finite gives NO_TOKEN. Log probabilities are left in the
        stream. A memoryless one may come several times in a row: for its next token, the one after that, and so on.
        Rows may be changed while the call lasts.
        """


class NumpySampler:
    """Where the native library cannot be had."""

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[int]:
        tokens, ahead = list[int](), 0
        for place, stream in enumerate(streams):
            ahead = ahead + 1 if place and stream is streams[place - 1] else 0
            tokens.append(_draw_or_none(rows[place, : stream.vocab], stream, ahead))
        return tokens


def _draw_or_none(row: Row, stream: Stream, ahead: int) -> int:
    try:
        return _draw(row, stream, ahead)
    except StepError:
        return NO_TOKEN


def _draw(raw: Row, stream: Stream, ahead: int) -> int:
    if stream.sampling.logprobs is None:
        return _choose(raw, stream, ahead)
    distribution = Distribution(raw, 1.0)
    token = _choose(raw, stream, ahead)
    ids = distribution.top(stream.sampling.logprobs)
    own, *top = distribution.logprobs(np.append(token, ids))
    stream.tell(own, list(zip(ids.tolist(), top, strict=True)))
    return token


def _choose(raw: Row, stream: Stream, ahead: int) -> int:
    logits = _penalised(raw, stream) if stream.penalised else raw
    if stream.scale == 0.0:
        return _greatest(logits)
    distribution, sampling = Distribution(logits, stream.scale), stream.sampling
    u = uniform(sampling.seed, stream.choice, stream.position + ahead)
    if sampling.top_p >= 1.0 and not sampling.top_k and sampling.min_p <= 0.0:
        return distribution.quantile(u)
    ids, weights = distribution.cut(sampling)
    return int(ids[quantile(weights, u * float(weights.sum()))])


def _penalised(raw: Row, stream: Stream) -> Row:
    """The row as the tokens that its sequence has seen change it.

    `repetition` counts prompt and output; it divides positive logits and multiplies negative ones (Keskar et al.,
    "CTRL", 2019). `frequency` and `presence` count output only and are subtracted (OpenAI's definition).
    """
    logits, sampling = raw.copy(), stream.sampling
    ids, counts = np.array(stream.seen.ids), np.array(stream.seen.counts)
    ids, counts = ids[ids < len(raw)], counts[ids < len(raw)]
    values = logits[ids]
    if (penalty := np.float32(sampling.repetition_penalty)) != 1.0:
        values = np.where(values > 0, values / penalty, values * penalty)
    values -= np.float32(sampling.frequency_penalty) * counts
    values -= np.float32(sampling.presence_penalty) * (counts > 0)
    logits[ids] = values
    return logits


def _greatest(logits: Row) -> int:
    best = int(logits.argmax())  # the first NaN, if there is one
    if not math.isfinite(logits[best]):
        raise StepError(NOT_FINITE)
    return best
