"""Output and error file of a batch, put together from the stored results. Everything here blocks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from llmosd.application.batch import lines
from llmosd.application.batch.files import new_file
from llmosd.application.batch.job import Counts, Details, Usage
from llmosd.application.batch.lines import Span

Result = tuple[int, bool, bytes]


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class Failure(msgspec.Struct):
    code: str
    message: str


class Record(msgspec.Struct, kw_only=True):
    """One line of either file. `error` is of a line that was never asked."""

    id: str
    custom_id: str
    response: Response | None = None
    error: Failure | None = None


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    """As answers have it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details = msgspec.field(default_factory=_Details)

    def add(self, other: _Usage) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens

    def shown(self) -> Usage:
        total = self.prompt_tokens + self.completion_tokens
        details = Details(cached_tokens=self.prompt_tokens_details.cached_tokens)
        return Usage(self.prompt_tokens, self.completion_tokens, total, details)


class _Body(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Response(msgspec.Struct):
    body: _Body


class _Answered(msgspec.Struct):
    response: _Response


@dataclass(frozen=True, slots=True)
class Tally:
    """What the files have. The `missing` lines were not run and count as failed."""

    counts: Counts
    usage: Usage
    missing: int


def record(custom_id: str, **outcome: Any) -> bytes:
    return msgspec.json.encode(Record(id=f"batch_req_{uuid.uuid4().hex}", custom_id=custom_id, **outcome))


def assemble(
    source: Path, spans: Sequence[Span], results: Iterator[Result], why_not: Failure, good: Path, bad: Path
) -> Tally:
    """Write what succeeded to `good` and what did not to `bad`, in the order of the input file `source`.

    A line of it without a result was not run, for the reason `why_not`.
    """
    counted = _Usage()
    completed = failed = missing = 0
    result = next(results, None)
    with new_file(good) as output, new_file(bad) as errors:
        for span in spans:
            if result is None or result[0] != span.number:
                missing += 1
                errors.write(record(lines.read(source, span).custom_id, error=why_not) + b"\n")
                continue
            _, has_failed, line = result
            if has_failed:
                failed += 1
                errors.write(line + b"\n")
            else:
                completed += 1
                counted.add(msgspec.json.decode(line, type=_Answered).response.body.usage)
                output.write(line + b"\n")
            result = next(results, None)
    assert result is None, "a result of a line that the input file does not have"
    return Tally(Counts(len(spans), completed, failed + missing), counted.shown(), missing)
