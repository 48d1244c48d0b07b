"""The input file of a batch: one request a line, found by number. Everything here blocks.

A file is refused whole if one of its lines is no request to the batch's endpoint; what is wrong with a request's body
is found when its turn comes, and concerns that line alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from llmosd.application.batch.job import LineError

MAX_LINES = 50_000
MAX_ERRORS = 100  # that are told
MAX_CUSTOM_ID = 512


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One request; `body` is what would be posted to `url`."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: str


@dataclass(frozen=True, slots=True)
class Span:
    """Where a line is. Lines are numbered from 1, blank ones count."""

    number: int
    start: int
    size: int


def spans(path: Path) -> Iterator[tuple[Span, bytes]]:
    """All lines but the blank ones."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Span(number, start, len(line)), line
            start += len(line)


def read(path: Path, span: Span) -> Line:
    """A line of a file that has been checked."""
    with path.open("rb") as file:
        file.seek(span.start)
        return msgspec.json.decode(file.read(span.size), type=Line)


@dataclass(frozen=True, slots=True)
class Input:
    """A checked file. With errors it is of no use; `model` is the first line's."""

    lines: list[Span]
    errors: list[LineError]
    model: str | None = None


def check(path: Path, endpoint: str) -> Input:
    """Raises OSError."""
    found, seen = Input([], []), dict[str, int]()
    model = None
    for span, raw in spans(path):
        if len(found.errors) == MAX_ERRORS:
            break
        if len(found.lines) == MAX_LINES:
            found.errors.append(LineError("too_many_requests", f"at most {MAX_LINES} requests a file", span.number))
            break
        error = _error(raw, endpoint, seen, span.number)
        if error is None:
            model = model or _model(raw)
            found.lines.append(span)
        else:
            found.errors.append(error)
    if not found.lines and not found.errors:
        found.errors.append(LineError("empty_file", "the file has no requests"))
    return Input(found.lines, found.errors, model)


def _error(raw: bytes, endpoint: str, seen: dict[str, int], number: int) -> LineError | None:
    try:
        line = msgspec.json.decode(raw, type=Line)
    except msgspec.ValidationError as error:
        return LineError("invalid_request", f"not a request: {error}", number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return LineError("invalid_json_line", f"not JSON: {error}", number)
    if line.url != endpoint:
        return LineError("mismatched_endpoint", f"the batch is for {endpoint}, not {line.url[:100]!r}", number, "url")
    if not bytes(line.body).lstrip().startswith(b"{"):
        return LineError("invalid_request", "body must be an object", number, "body")
    if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID:
        return LineError("invalid_custom_id", f"custom_id takes 1 to {MAX_CUSTOM_ID} characters", number, "custom_id")
    if (first := seen.setdefault(line.custom_id, number)) != number:
        return LineError("duplicate_custom_id", f"custom_id is that of line {first}", number, "custom_id")
    return None


def _model(raw: bytes) -> str | None:
    try:
        return msgspec.json.decode(msgspec.json.decode(raw, type=Line).body, type=_Body).model
    except msgspec.MsgspecError:
        return None
