"""/v1/files: what batches read and what they give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from llmosd.application.batch.batches import Batches
from llmosd.application.batch.files import MAX_FILE, check_lifetime, new_file
from llmosd.application.http.errors import BodyTooLarge
from llmosd.application.http.multipart import Form, boundary_of, parse
from llmosd.application.http.reply import ok
from llmosd.application.http.rights import caller_of
from llmosd.errors import InvalidRequest, LlmosError

_PIECE = 1 << 20
_FRAME = 64 << 10  # of a multipart body beside the file
_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_PURPOSES = ("batch", "batch_output")


class Page(msgspec.Struct):
    """OpenAI's shape of a list that goes on `after` its last element."""

    data: Sequence[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: str = "file"


class FilesEndpoint:
    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._files = batches.files

    async def collection(self, request: Request) -> Response:
        return await (self._create(request) if request.method == "POST" else self._list(request))

    async def _create(self, request: Request) -> Response:
        boundary, body = boundary_of(request.headers.get("content-type", "")), self._files.scratch()
        try:
            await _save(request, body)
            form = await asyncio.to_thread(parse, body, boundary)
            filename, part, lifetime = _checked(form, body)
            file = await self._files.add(part, filename=filename, user=user_of(request), expires_after=lifetime)
        except OSError as error:
            raise LlmosError(f"the file cannot be kept: {error.strerror}") from error
        finally:
            await asyncio.to_thread(body.unlink, True)
        return ok(file)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        check_query(query, "purpose", "after", "limit", "order")
        if (purpose := query.get("purpose")) is not None and purpose not in _PURPOSES:
            raise InvalidRequest(f"purpose must be one of {', '.join(_PURPOSES)}", param="purpose")
        if query.get("order", "desc") not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", param="order")
        files = [file for file in self._files.listed(owner_of(request)) if purpose in (None, file.purpose)]
        return ok(page(files if query.get("order") != "asc" else files[::-1], query, 10_000))

    async def one(self, request: Request) -> Response:
        id, owner = request.path_params["id"], owner_of(request)
        if request.method == "DELETE":
            await self._batches.delete_file(id, owner)
            return ok(Deleted(id))
        return ok(self._files.get(id, owner))

    async def content(self, request: Request) -> Response:
        file = self._files.get(request.path_params["id"], owner_of(request))
        return FileResponse(self._files.path(file.id), media_type="application/octet-stream")


def owner_of(request: Request) -> str | None:
    """Whose files and batches the caller may see; None is everybody's."""
    return caller_of(request).owner


def user_of(request: Request) -> str:
    """To whom what the caller makes belongs."""
    return caller_of(request).user or ""


def check_query(query: QueryParams, *known: str) -> None:
    for name in query.keys() - set(known):
        raise InvalidRequest(f"unknown parameter {name!r} (there are: {', '.join(known)})", param=name)


def page(found: Sequence[Any], query: QueryParams, most: int) -> Page:
    """From behind the one with the id `after`, at most `limit` of them."""
    limit, after = query.get("limit", str(min(most, 100))), query.get("after")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= most:
        raise InvalidRequest(f"limit must be between 1 and {most}", param="limit")
    start = 0
    if after is not None:
        start = next((place for place, item in enumerate(found, 1) if item.id == after), 0)
        if not start:
            raise InvalidRequest(f"after names nothing that is here: {after[:100]!r}", param="after")
    data = found[start : start + int(limit)]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data, first, last, start + len(data) < len(found))


def _checked(form: Form, body: Path) -> tuple[str, tuple[Path, int, int], int | None]:
    """File name, where its contents are, and how many seconds it is kept at most. Raises InvalidRequest."""
    for name in form.fields.keys() - _FIELDS | form.files.keys() - {"file"}:
        raise InvalidRequest(f"unknown field {name[:100]!r}", param=name[:100])
    if (file := form.files.get("file")) is None:
        raise InvalidRequest("file is required", param="file")
    if (purpose := form.fields.get("purpose")) != "batch":
        raise InvalidRequest(f"purpose must be 'batch', not {(purpose or '')[:100]!r}", param="purpose")
    if file.end - file.start > MAX_FILE:
        raise BodyTooLarge(f"the file exceeds {MAX_FILE} bytes")
    return file.filename, (body, file.start, file.end), _lifetime(form)


def _lifetime(form: Form) -> int | None:
    anchor, seconds = (form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or seconds is None or not (seconds.isascii() and seconds.isdigit()):
        raise InvalidRequest("expires_after takes the anchor created_at and a number of seconds", param="expires_after")
    return check_lifetime(int(seconds[:9]), "expires_after[seconds]")


async def _save(request: Request, path: Path) -> None:
    """The body, piece by piece. Raises BodyTooLarge."""
    piece, size = bytearray(), 0
    with await asyncio.to_thread(new_file, path) as file:
        async for chunk in request.stream():
            piece += chunk
            size += len(chunk)
            if size > MAX_FILE + _FRAME:
                raise BodyTooLarge(f"the file exceeds {MAX_FILE} bytes")
            if len(piece) >= _PIECE:
                await asyncio.to_thread(file.write, bytes(piece))
                piece.clear()
        await asyncio.to_thread(file.write, bytes(piece))
