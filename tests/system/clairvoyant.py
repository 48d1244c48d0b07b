"""Speculation that knows what the symbolic executor will say, and says something else as often as it is told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from llmosd.system.request import Sequence as Continuation
from llmosd.system.speculation import Speculation
from tests.system.symbolic import VOCABULARY, expected_tokens


class Clairvoyant(Speculation):
    """Guesses as much as there is room for, whatever it costs; each guess is right with a chance of `sight`."""

    def __init__(self, seed: int, sight: float) -> None:
        super().__init__()
        self._random = Random(seed)
        self._sight = sight

    def guesses(
        self, decoding: Sequence[Continuation], room: Callable[[Continuation], int], left: int
    ) -> list[list[int]]:
        made = []
        for sequence in decoding:
            spec, past = sequence.request.spec, len(sequence.tokens)
            truth = expected_tokens(spec, sequence.choice, sequence.request.max_tokens)[past:]
            count = self._random.randint(0, min(room(sequence), left))
            made.append([self._see(truth, ahead) for ahead in range(count)])
            left -= count
        return made

    def _see(self, truth: list[int], ahead: int) -> int:
        right = ahead < len(truth) and self._random.random() < self._sight
        return truth[ahead] if right else self._random.randrange(VOCABULARY)
