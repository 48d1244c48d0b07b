"""Bytes of tokens to text that is safe to send: whole characters, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Text of one sequence, piece by piece.

    Bytes that are not UTF-8 become U+FFFD exactly as they would in the whole text. The text ends before the stop string
    that is complete first (of two that are complete with the same character, the longer one); only the longest end of
    the text that could begin a stop string is held back.
    """

    __slots__ = ("_begun", "_held", "_stop")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._begun = b""  # a character
        self._held = ""

    def push(self, data: bytes) -> tuple[str, bool]:
        """Text that became safe with these bytes, and whether a stop string ended it. Not to be called after that."""
        if data.isascii() and not self._begun and not self._stop:
            return data.decode("ascii"), False
        return self._release(self._decode(data))

    def flush(self) -> str:
        """The rest, at the end of the tokens: what was held back and U+FFFD for an unfinished character."""
        text, stopped = self._release(self._decode(b"", final=True))
        return text if stopped else text + self._held

    def _decode(self, data: bytes, final: bool = False) -> str:
        data = self._begun + data
        text, decoded = codecs.utf_8_decode(data, "replace", final)
        self._begun = data[decoded:]
        return text

    def _release(self, new: str) -> tuple[str, bool]:
        if not self._stop:
            return new, False
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)[1]], True
        safe = len(text) - self._possible_start(text)
        self._held = text[safe:]
        return text[:safe], False

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
