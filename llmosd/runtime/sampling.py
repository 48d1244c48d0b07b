"""Choosing the next token from each row of a step's logits.

The order of operations is the one Hugging Face and vLLM share: penalties, temperature, then the cuts (top-k, min-p,
top-p), each on what the one before it left, renormalised. Randomness is counter-based, `uniform(seed, choice,
position)`, and rows are worked on one by one, so neither the batch, nor chunking, nor preemption can change a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from llmosd.errors import StepError
from llmosd.runtime.distribution import NOT_FINITE, Distribution, Row, quantile
from llmosd.runtime.stream import Stream, uniform


class Draw(NamedTuple):
    """A chosen token; with logprobs its own and those of the likeliest `(token, logprob)`, all of the raw row."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler(Protocol):
    """Draws tokens, each from its own row and stream alone; owns scratch memory. One thread only."""

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[Draw | StepError]:
        """The next token of each stream from its row of the logits [R, V]; streams do not move on.

        A row that holds NaN or whose largest logit is not finite gives a StepError in its place. Rows may be changed
        while the call lasts.
        """


class NumpySampler:
    """Where the native library cannot be had."""

    def draw_rows(self, rows: Row, streams: Sequence[Stream]) -> list[Draw | StepError]:
        return [self._draw_or_error(row, stream) for row, stream in zip(rows, streams, strict=True)]

    def _draw_or_error(self, row: Row, stream: Stream) -> Draw | StepError:
        try:
            return _draw(row[: stream.vocab], stream)
        except StepError as error:
            return error


def _draw(raw: Row, stream: Stream) -> Draw:
    if stream.sampling.logprobs is None:
        return Draw(_choose(raw, stream))
    distribution = Distribution(raw, 1.0)
    token = _choose(raw, stream)
    ids = distribution.top(stream.sampling.logprobs)
    own, *top = distribution.logprobs(np.append(token, ids))
    return Draw(token, own, tuple(zip(ids.tolist(), top, strict=True)))


def _choose(raw: Row, stream: Stream) -> int:
    logits = _penalised(raw, stream) if stream.penalised else raw
    if stream.scale == 0.0:
        return _greatest(logits)
    distribution, sampling = Distribution(logits, stream.scale), stream.sampling
    u = uniform(sampling.seed, stream.choice, stream.position)
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
