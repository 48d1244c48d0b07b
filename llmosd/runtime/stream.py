"""What sampling knows of one sequence: what was asked for, which tokens it has seen, where it stands, what it drew."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import islice

from llmosd.types import Sampling, SequenceStart, TokenLogprob

NO_TOKEN = -1  # where none can be drawn; kNoToken of the native library
WHOLE_ROW = 1 << 62  # more logits than any row has
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


class Seen:
    """The tokens that penalties are for, each once, and how often each was put out."""

    __slots__ = ("_place", "counts", "ids")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._place = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self.ids = array("q", self._place)
        self.counts = array("f", bytes(4 * len(self.ids)))

    def add(self, token: int) -> bool:
        """Count one output token; whether it is a new one, so that the arrays may lie elsewhere now."""
        place = self._place.setdefault(token, len(self.ids))
        new = place == len(self.ids)
        if new:
            self.ids.append(token)
            self.counts.append(0.0)
        self.counts[place] += 1.0
        return new


class Parameters(ctypes.Structure):
    """All of a stream that a draw depends on, and its results, laid out as the native library's `Parameters`."""

    _fields_ = (
        ("seen", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("seen_count", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("choice", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("scale", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("top_k", ctypes.c_int64),
        ("logprobs", ctypes.c_int64),
        ("repetition", ctypes.c_float),
        ("frequency", ctypes.c_float),
        ("presence", ctypes.c_float),
        ("penalised", ctypes.c_int32),
        ("logprob", ctypes.c_double),
        ("top_count", ctypes.c_int64),
        ("top_ids", ctypes.c_void_p),
        ("top_logprobs", ctypes.c_void_p),
    )


class Stream:
    """One sequence's sampling; it moves on by `accept` alone."""

    __slots__ = (
        "_parameters",
        "_top_ids",
        "_top_logprobs",
        "address",
        "choice",
        "memoryless",
        "penalised",
        "position",
        "sampling",
        "seen",
        "vocab",
    )

    def __init__(self, start: SequenceStart, vocab: int = WHOLE_ROW) -> None:
        """The first `vocab` logits of a row are those of tokens."""
        self.sampling = start.sampling
        self.vocab = vocab
        self.choice = start.choice
        self.position = len(start.prompt)  # of the next token
        self.penalised = _penalises(start.sampling)
        self.memoryless = not self.penalised and start.sampling.logprobs is None  # the token before changes nothing
        self.seen = Seen(start.prompt if start.sampling.repetition_penalty != 1.0 else ())
        self._parameters = _parameters(start, self.position, self.penalised, vocab)
        self.address = ctypes.addressof(self._parameters)  # of what the native library reads and writes
        self._top_ids = array("q", bytes(8 * (start.sampling.logprobs or 0)))
        self._top_logprobs = array("d", bytes(8 * len(self._top_ids)))
        self._parameters.top_ids = self._top_ids.buffer_info()[0]
        self._parameters.top_logprobs = self._top_logprobs.buffer_info()[0]
        self._show_seen()

    @property
    def scale(self) -> float:
        """What logits are multiplied by; 0 stands for a greedy choice."""
        return self._parameters.scale  # type: ignore[no-any-return]

    def logprobs(self, token: int) -> tuple[TokenLogprob, ...]:
        """Of the token that was drawn last, where they were asked for."""
        if self.sampling.logprobs is None:
            return ()
        top = zip(self._top_ids, self._top_logprobs, strict=True)
        return (TokenLogprob(token, self._parameters.logprob, tuple(islice(top, self._parameters.top_count))),)

    def tell(self, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        """The log probabilities of a draw; the native library writes them itself."""
        self._parameters.logprob, self._parameters.top_count = logprob, len(top)
        for place, (token, value) in enumerate(top):
            self._top_ids[place], self._top_logprobs[place] = token, value

    def accept(self, token: int) -> None:
        self.position += 1
        self._parameters.position = self.position
        if self.penalised and self.seen.add(token):
            self._show_seen()

    def _show_seen(self) -> None:
        self._parameters.seen, self._parameters.seen_count = self.seen.ids.buffer_info()
        self._parameters.counts = self.seen.counts.buffer_info()[0]


def _penalises(sampling: Sampling) -> bool:
    return (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)


def _parameters(start: SequenceStart, position: int, penalised: bool, vocab: int) -> Parameters:
    sampling = start.sampling
    return Parameters(
        vocab=vocab,
        seed=sampling.seed & _MASK,
        choice=start.choice,
        position=position,
        scale=0.0 if sampling.temperature < GREEDY_BELOW else 1.0 / sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k,
        logprobs=-1 if sampling.logprobs is None else sampling.logprobs,
        repetition=sampling.repetition_penalty,
        frequency=sampling.frequency_penalty,
        presence=sampling.presence_penalty,
        penalised=penalised,
    )
