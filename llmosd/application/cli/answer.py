"""An answer as it comes: text to stdout, tokens per second to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator
from types import TracebackType

from llmosd.application.cli import output
from llmosd.application.client import Piece

REFRESH_S = 0.25


def stream_answer(pieces: Iterator[Piece]) -> str:
    """Print the pieces as they come and return the text. An interrupt ends the answer, which cancels its request."""
    speed, texts, stopped = Speed(), list[str](), ""
    try:
        with StatusLine() as line:
            for piece in pieces:
                texts.append(piece.text)
                print(output.for_stdout(piece.text), end="", flush=True)
                speed.add(piece)
                line.show(str(speed))
    except KeyboardInterrupt:
        stopped = ", stopped"
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
        print(flush=True)
    print(f"[{speed}{stopped}]", file=sys.stderr, flush=True)
    return "".join(texts)


class Speed:
    """How many tokens came, how fast, and how long the first one took."""

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._first: float | None = None
        self._last = 0.0
        self._tokens = 0

    def add(self, piece: Piece) -> None:
        self._last = time.monotonic()
        self._tokens = piece.usage.completion_tokens if piece.usage else self._tokens
        if self._first is None and self._tokens:
            self._first = self._last

    def __str__(self) -> str:
        if self._first is None:
            return "no token yet"
        said = f"{self._tokens} token{'s' * (self._tokens != 1)}"
        if self._tokens > 1 and self._last > self._first:
            said += f", {(self._tokens - 1) / (self._last - self._first):.1f} tokens/s"
        return f"{said}, first after {self._first - self._asked:.2f} s"


class StatusLine:
    """A line on stderr that is rewritten in place; silent where stderr is no terminal.

    Where stdout is on the same terminal, the bottom row is taken out of the scrolling region (DECSTBM) for it.
    """

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._rows = 0
        self._shown_at = 0.0
        if self._on and sys.stdout.isatty():
            self._rows = os.get_terminal_size(sys.stderr.fileno()).lines
            self._on = self._rows > 2  # a terminal that does not tell its size has no row to spare

    def __enter__(self) -> StatusLine:
        if self._on and self._rows:
            self._write(f"\n\x1b7\x1b[1;{self._rows - 1}r\x1b8\x1b[1A")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on and self._rows:
            self._write(f"\x1b7\x1b[1;{self._rows}r\x1b[{self._rows};1H\x1b[2K\x1b8")
        elif self._on:
            self._write("\r\x1b[2K")

    def show(self, text: str) -> None:
        """At most every REFRESH_S."""
        now = time.monotonic()
        if not self._on or now - self._shown_at < REFRESH_S:
            return
        self._shown_at = now
        self._write(f"\x1b7\x1b[{self._rows};1H\x1b[2K{text}\x1b8" if self._rows else f"\r\x1b[2K{text}")

    def _write(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
