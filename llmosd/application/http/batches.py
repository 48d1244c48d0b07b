"""/v1/batches: jobs of many requests, run when nobody is kept waiting by it."""

from __future__ import annotations

import re
import time
import uuid
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.batch.batches import Batches
from llmosd.application.batch.files import DAY_S, check_lifetime
from llmosd.application.batch.job import Batch
from llmosd.application.http.decode import decode_object, read_body
from llmosd.application.http.files import check_query, owner_of, page, user_of
from llmosd.application.http.reply import ok
from llmosd.errors import InvalidRequest

_WINDOW = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY_S}
MAX_WINDOW_S = 30 * DAY_S
MAX_METADATA, MAX_KEY, MAX_VALUE = 16, 64, 512


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: int


class BatchBody(msgspec.Struct):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchesEndpoint:
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    async def collection(self, request: Request) -> Response:
        return await (self._create(request) if request.method == "POST" else self._list(request))

    async def _create(self, request: Request) -> Response:
        body, now = decode_object(await read_body(request), BatchBody, {}), int(time.time())
        file = self._batches.files.get(body.input_file_id, owner_of(request))
        if file.purpose != "batch":
            raise InvalidRequest(f"file {file.id} was not uploaded for a batch", param="input_file_id")
        _check_metadata(body.metadata)
        expires = body.output_expires_after
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            user=user_of(request),
            endpoint=body.endpoint,
            input_file_id=file.id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + _window(body.completion_window),
            metadata=body.metadata,
            output_expires_after=check_lifetime(expires.seconds, "output_expires_after.seconds") if expires else None,
        )
        return ok(await self._batches.create(batch))

    async def _list(self, request: Request) -> Response:
        check_query(request.query_params, "after", "limit")
        return ok(page(self._batches.listed(owner_of(request)), request.query_params, 100))

    async def get(self, request: Request) -> Response:
        return ok(self._batches.get(request.path_params["id"], owner_of(request)))

    async def cancel(self, request: Request) -> Response:
        """What is done of it stays; what runs is cancelled."""
        if await read_body(request) not in (b"", b"{}"):
            raise InvalidRequest("this takes no body")
        batch = self._batches.get(request.path_params["id"], owner_of(request))
        return ok(await self._batches.cancel(batch.id))


def _window(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= MAX_WINDOW_S:
        raise InvalidRequest("completion_window is a time from 1s to 30d, as 24h", param="completion_window")
    return seconds


def _check_metadata(metadata: dict[str, str] | None) -> None:
    pairs = (metadata or {}).items()
    if len(pairs) > MAX_METADATA or any(len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in pairs):
        text = f"metadata takes {MAX_METADATA} pairs, keys of {MAX_KEY} and values of {MAX_VALUE} characters at most"
        raise InvalidRequest(text, param="metadata")
