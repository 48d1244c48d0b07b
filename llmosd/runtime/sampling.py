"""Choosing the next token from one row of logits.

The order of operations is the one Hugging Face and vLLM share: penalties, temperature, then the cuts (top-k, min-p,
top-p), each on what the one before it left, renormalised. Randomness is counter-based, `uniform(seed, choice,
position)`, and rows are worked on one by one, so neither the batch, nor chunking, nor preemption can change a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmosd.errors import StepError
from llmosd.runtime.distribution import NOT_FINITE, Distribution, quantile
from llmosd.runtime.rows import Row, Rows
from llmosd.types import Sampling, SequenceStart

GREEDY_BELOW = 1e-5  # a temperature under this is greedy: dividing by it would overflow float32
_MASK = (1 << 64) - 1


def uniform(seed: int, choice: int, position: int) -> float:
    """Number in [0, 1), a pure function of its arguments.

    SplitMix64's output function (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
    applied as a hash chain over the three counters; the top 53 bits make the float.
    """
    state = 0
    for counter in (seed, choice, position):
        state = (state + counter + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


class Penalties:
    """The tokens a sequence has seen, and what they cost.

    `repetition` counts prompt and output; it divides positive logits and multiplies negative ones (Keskar et al.,
    "CTRL", 2019). `frequency` and `presence` count output only and are subtracted (OpenAI's definition).
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        seen = dict.fromkeys(prompt) if sampling.repetition_penalty != 1.0 else {}
        self._place = {token: place for place, token in enumerate(seen)}
        self._ids = np.fromiter(seen, np.int64, len(seen))
        self._counts = np.zeros(len(seen), np.float32)

    @property
    def active(self) -> bool:
        sampling = self._sampling
        return (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)

    def add(self, token: int) -> None:
        """Count one output token."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            spare = max(64, len(self._ids))
            self._ids = np.concatenate([self._ids, np.zeros(spare, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(spare, np.float32)])
        self._ids[place] = token
        self._counts[place] += 1.0

    def apply(self, logits: Row) -> None:
        """Change the logits of the seen tokens in place."""
        ids, counts = self._ids[: len(self._place)], self._counts[: len(self._place)]
        values, sampling = logits[ids], self._sampling
        if (penalty := np.float32(sampling.repetition_penalty)) != 1.0:
            values = np.where(values > 0, values / penalty, values * penalty)
        values -= np.float32(sampling.frequency_penalty) * counts
        values -= np.float32(sampling.presence_penalty) * (counts > 0)
        logits[ids] = values


class Stream:
    """What sampling knows of one sequence; it moves on by `accept` alone."""

    def __init__(self, start: SequenceStart) -> None:
        self.sampling = start.sampling
        self.choice = start.choice
        self.position = len(start.prompt)  # of the next token
        self.penalties = Penalties(start.sampling, start.prompt)

    def accept(self, token: int) -> None:
        self.position += 1
        if self.penalties.active:
            self.penalties.add(token)


@dataclass(frozen=True, slots=True)
class Draw:
    """A chosen token; with logprobs its own and those of the likeliest `(token, logprob)`, all of the raw row."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws tokens, each from its own row and stream alone; owns scratch memory. One thread only."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._scratch = np.empty(0, np.float32)

    def draw(self, raw: Row, stream: Stream) -> Draw:
        """Choose the stream's next token; changes nothing but scratch memory.

        Raises StepError if the logits are not finite.
        """
        if stream.sampling.logprobs is None:
            return Draw(self._choose(raw, stream))
        distribution = Distribution(raw, 1.0, self._rows)
        token = _pick(distribution, stream) if _is_plain(stream) else self._choose(raw, stream)
        ids = distribution.top(stream.sampling.logprobs)
        own, *top = distribution.logprobs(np.append(token, ids))
        return Draw(token, own, tuple(zip(ids.tolist(), top, strict=True)))

    def _choose(self, raw: Row, stream: Stream) -> int:
        logits = self._penalised(raw, stream.penalties) if stream.penalties.active else raw
        if stream.sampling.temperature < GREEDY_BELOW:
            return _greatest(logits)
        return _pick(Distribution(logits, 1.0 / stream.sampling.temperature, self._rows), stream)

    def _penalised(self, raw: Row, penalties: Penalties) -> Row:
        if len(raw) != len(self._scratch):
            self._scratch = np.empty(len(raw), np.float32)
        np.copyto(self._scratch, raw)
        penalties.apply(self._scratch)
        return self._scratch


def _greatest(logits: Row) -> int:
    best = int(logits.argmax())  # the first NaN, if there is one
    if not math.isfinite(logits[best]):
        raise StepError(NOT_FINITE)
    return best


def _is_plain(stream: Stream) -> bool:
    """Whether it samples from the raw distribution, but for the cuts."""
    return stream.sampling.temperature == 1.0 and not stream.penalties.active


def _pick(distribution: Distribution, stream: Stream) -> int:
    sampling = stream.sampling
    u = uniform(sampling.seed, stream.choice, stream.position)
    if sampling.top_p >= 1.0 and not sampling.top_k and sampling.min_p <= 0.0:
        return distribution.quantile(u)
    ids, weights = distribution.cut(sampling)
    return int(ids[quantile(weights, u * float(weights.sum()))])
