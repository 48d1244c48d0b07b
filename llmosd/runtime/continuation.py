"""What a sequence's tokens say, and which one is its last."""

from __future__ import annotations

from collections.abc import Iterable

from llmosd.runtime.detokenizer import Detokenizer
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.types import FinishReason, Sampling


class Continuation:
    """One sequence's text, token by token; it depends on nothing but the tokens and what was asked for."""

    __slots__ = ("_bytes_of", "_ends", "_left", "_text")

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer) -> None:
        assert sampling.max_tokens is not None, "the kernel resolves max_tokens"
        self._bytes_of = tokenizer.token_bytes
        self._ends = frozenset[int]() if sampling.ignore_eos else tokenizer.eos_ids
        self._text = Detokenizer(sampling.stop)
        self._left = sampling.max_tokens

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that became safe with this token, and whether the sequence ends here."""
        self._left -= 1
        if token in self._ends:
            return self._text.flush(), FinishReason.STOP
        text, stopped = self._text.push(self._bytes_of(token))
        if stopped:
            return text, FinishReason.STOP
        if self._left == 0:
            return text + self._text.flush(), FinishReason.LENGTH
        return text, None


def text_of(tokens: Iterable[int], sampling: Sampling, tokenizer: Tokenizer) -> str:
    """All text that was safe to send when these were the sequence's tokens."""
    continuation = Continuation(sampling, tokenizer)
    return "".join(continuation.accept(token)[0] for token in tokens)
