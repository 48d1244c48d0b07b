"""A batch job and an uploaded file as they are kept and shown: OpenAI's shape, and whose they are."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
UNFINISHED: frozenset[Status] = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
ENDPOINTS = ("/v1/chat/completions", "/v1/completions")


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """Its contents lie beside the database, under its id. Times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    user: str
    object: str = "file"
    status: str = "processed"


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with an input file, at a line from 1 or as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Errors(msgspec.Struct, frozen=True):
    data: tuple[LineError, ...]
    object: str = "list"


class Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Of all lines that were answered."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: Details = Details()
    output_tokens_details: Details = Details()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """`expires_at` is the end of its window; `output_expires_after` are seconds. Other times say when it got there."""

    id: str
    user: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    model: str | None = None
    errors: Errors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_after: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    usage: Usage | None = None
    object: str = "batch"

    @property
    def unfinished(self) -> bool:
        return self.status in UNFINISHED

    @property
    def ended_at(self) -> int | None:
        ends = (self.completed_at, self.failed_at, self.expired_at, self.cancelled_at)
        return next((at for at in ends if at is not None), None)

    def moved(self, status: Status, now: float, **changes: Any) -> Batch:
        return msgspec.structs.replace(self, status=status, **{f"{status}_at": int(now)}, **changes)
