"""Prompt lookup: guesses of a sequence's next tokens from its own past.

Where the last two tokens stood before, what followed them then may well follow now (Saxena, "Prompt Lookup Decoding",
2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

_LONG = 8  # a match is not measured beyond so many tokens
_LEVEL = (0, 0, 0, 1, 1, 2, 2, 2, 3)  # by length of the match
_PRIOR = (0.25, 0.5, 0.8, 0.95)  # by level: the share of right predictions, over chats with a small model
_WEIGHT = 8.0  # predictions that the prior counts as
_KEEP = 0.95  # of what was learnt, with each prediction


class Lookup:
    """One sequence's tokens and where each pair of them stood last; constant time and memory a token.

    Each token that comes shows whether the lookup had it right, fed or not, so its accuracy, which grows with the
    length of the match, is always known.
    """

    __slots__ = ("_after", "_match", "_place", "_right", "_seen", "_tokens")

    def __init__(self, prompt: Sequence[int]) -> None:
        """Takes time in proportion to the prompt, which is not empty."""
        self._tokens = list(prompt)
        self._after = {_pair(a, b): end for end, (a, b) in enumerate(pairwise(prompt[:-1]), 2)}
        self._right = [_WEIGHT * share for share in _PRIOR]
        self._seen = [_WEIGHT] * len(_PRIOR)
        self._place = 0  # of the predicted token; 0 is none
        self._match = 0  # tokens before it that are those before the next one
        if len(prompt) > 1:
            self._find()

    def __len__(self) -> int:
        return len(self._tokens)

    def follow(self, tokens: Iterable[int]) -> None:
        """Take in the tokens that came next."""
        for token in tokens:
            right = self._place > 0 and self._tokens[self._place] == token
            if self._place:
                level = _LEVEL[self._match]
                self._right[level] = _KEEP * self._right[level] + right
                self._seen[level] = _KEEP * self._seen[level] + 1.0
            self._tokens.append(token)
            if right:
                self._place, self._match = self._place + 1, min(self._match + 1, _LONG)
                self._after[_pair(*self._tokens[-2:])] = len(self._tokens)
            else:
                self._find()

    def guess(self, count: int) -> list[int]:
        """The next `count` tokens if history repeats itself, over and over where it ends; none without a match."""
        if not self._place:
            return []
        period = len(self._tokens) - self._place
        return [self._tokens[self._place + ahead % period] for ahead in range(count)]

    def chance(self, ahead: int) -> float:
        """How likely the guess `ahead` places on is right if all before it are; 0 without a match."""
        if not self._place:
            return 0.0
        level = _LEVEL[min(self._match + ahead, _LONG)]
        return self._right[level] / self._seen[level]

    def _find(self) -> None:
        """Look the last pair up, then put it into the index."""
        tokens = self._tokens
        key = _pair(*tokens[-2:])
        place = self._place = self._after.get(key, 0)
        self._after[key] = len(tokens)
        self._match = 2 if place else 0
        while 2 <= self._match < min(_LONG, place) and tokens[place - 1 - self._match] == tokens[-1 - self._match]:
            self._match += 1


def _pair(first: int, second: int) -> int:
    return first << 32 | second
