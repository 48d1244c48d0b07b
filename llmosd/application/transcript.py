"""What requests have said, for whoever comes back to read it: of live ones, and of some that have ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from llmosd.errors import LlmosError
from llmosd.types import FinishReason, Output, RequestId

KEPT_CHARACTERS = 32 * 2**20  # of ended requests' texts


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that follows what a reader has of one choice, or the choice's end, or both."""

    choice: int
    text: str
    finish: FinishReason | None = None


class Transcript:
    """All text of one request, by choice; any number of readers, each from where it wants."""

    def __init__(self, texts: Sequence[str], finishes: Sequence[FinishReason | None] | None = None) -> None:
        self._pieces = [[text] for text in texts]
        self.finishes = list(finishes or [None] * len(texts))
        self._over = False
        self._error: LlmosError | None = None  # what ended it early
        self._readers: set[asyncio.Event] = set()

    @classmethod
    def blank(cls, n: int) -> Transcript:
        return cls([""] * n)

    @property
    def texts(self) -> list[str]:
        """So far, by choice."""
        return ["".join(pieces) for pieces in self._pieces]

    @property
    def characters(self) -> int:
        return sum(len(piece) for pieces in self._pieces for piece in pieces)

    def add(self, output: Output) -> None:
        if output.text:
            self._pieces[output.choice].append(output.text)
        if output.finish is not None:
            self.finishes[output.choice] = output.finish
        for news in self._readers:
            news.set()

    def end(self, error: LlmosError | None) -> None:
        self._over, self._error = True, error
        for news in self._readers:
            news.set()

    async def follow(self, skip: Sequence[int]) -> AsyncGenerator[list[Piece], None]:
        """What there is and what comes, but for the first `skip` characters of each choice, until the request's end.

        Raises what ended it early.
        """
        readers = [_Reader(choice, characters) for choice, characters in enumerate(skip)]
        news = asyncio.Event()
        self._readers.add(news)
        try:
            while True:
                news.clear()
                over = self._over
                came = [piece for reader in readers if (piece := self._read(reader))]
                if came:
                    yield came
                if over:
                    break
                await news.wait()
        finally:
            self._readers.discard(news)
        if self._error:
            raise self._error

    def _read(self, reader: _Reader) -> Piece | None:
        pieces, finish = self._pieces[reader.choice], self.finishes[reader.choice]
        text = reader.take("".join(pieces[reader.read :]))
        reader.read = len(pieces)
        told, reader.told = reader.told, finish is not None
        return Piece(reader.choice, text, None if told else finish) if text or (finish and not told) else None


@dataclass(slots=True)
class _Reader:
    """How far one reader is with one choice."""

    choice: int
    skip: int  # characters it has already
    read: int = 0  # pieces
    told: bool = False  # that the choice has ended

    def take(self, text: str) -> str:
        skipped = min(self.skip, len(text))
        self.skip -= skipped
        return text[skipped:]


class Transcripts:
    """Those of ended requests, the oldest forgotten first when they are more than KEPT_CHARACTERS together."""

    def __init__(self, limit: int = KEPT_CHARACTERS) -> None:
        self._limit = limit
        self._kept: dict[RequestId, Transcript] = {}
        self._characters = 0

    def add(self, id: RequestId, transcript: Transcript) -> None:
        self._kept[id] = transcript
        self._characters += transcript.characters
        while self._characters > self._limit:
            self.forget(next(iter(self._kept)))

    def get(self, id: RequestId) -> Transcript | None:
        return self._kept.get(id)

    def forget(self, id: RequestId) -> None:
        if (transcript := self._kept.pop(id, None)) is not None:
            self._characters -= transcript.characters
