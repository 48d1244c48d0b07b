"""The process table over HTTP: /v1/requests and /v1/requests/{id}, and reading what a request has said."""

from __future__ import annotations

import sys
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.access import Caller
from llmosd.application.commands import FIELDS, Commands, selection_of, shown
from llmosd.application.http.decode import read_body
from llmosd.application.http.generation import Backing
from llmosd.application.http.reattached import reattached
from llmosd.application.http.reply import Listing, ok
from llmosd.application.http.rights import caller_of
from llmosd.application.http.schema import priority_of
from llmosd.application.http.sse import EventStream
from llmosd.application.listing import RequestDetail, RequestInfo
from llmosd.errors import Forbidden, InvalidRequest
from llmosd.system.control import Action, Kill, Nice, Resume, Selection, Suspend
from llmosd.types import RequestId, RequestView, State
from llmosd.wire import CommandBody

_PREFIXES = ("chatcmpl-", "cmpl-")  # of the ids in answers; what follows is the request's own


class RequestsEndpoint:
    def __init__(self, backing: Backing, commands: Commands) -> None:
        self._service = backing.service
        self._hibernation = backing.hibernation
        self._commands = commands

    async def list(self, request: Request) -> Response:
        """Live requests and the last ended ones, youngest first, filtered by exact values."""
        selection, caller = _filters(request.query_params), caller_of(request)
        found = [view for view in await self._service.requests() if selection.matches(view)]
        return ok(Listing([RequestInfo.of(shown(view, caller)) for view in found]))

    async def one(self, request: Request) -> Response:
        """GET shows it, DELETE cancels it, PATCH {"priority": n} gives it that nice value from the next step on."""
        match request.method:
            case "DELETE":
                return await self._do(request, Kill("cancelled by DELETE /v1/requests"))
            case "PATCH":
                return await self._do(request, Nice(priority_of(await read_body(request))))
        return ok(await self._detail(self._id(request.path_params["id"]), caller_of(request)))

    async def _detail(self, id: RequestId, caller: Caller) -> RequestDetail:
        """With its text where that is open to the caller; who gets the whole answer has fetched it."""
        view = await self._service.get(id)
        if not caller.may_read(view):
            return RequestDetail.with_text(shown(view, caller), None)
        detail = RequestDetail.with_text(view, self._service.roster.transcript(id))
        if view.state is State.FINISHED:
            self._hibernation.fetched(id)
        return detail

    async def suspend(self, request: Request) -> Response:
        """It neither runs nor waits until it is resumed; its stream stays open."""
        return await self._do(request, Suspend())

    async def resume(self, request: Request) -> Response:
        """It takes its place in the queue again."""
        return await self._do(request, Resume())

    async def _do(self, request: Request, action: Action) -> Response:
        id = self._id(request.path_params["id"])
        return ok(RequestInfo.of(await self._commands.of(id, action, caller_of(request))))

    async def hibernate(self, request: Request) -> Response:
        """It stands still until it is resumed, or until the next daemon takes it up; on disk when this is answered."""
        id = self._id(request.path_params["id"])
        self._check_own(await self._service.get(id), caller_of(request))
        [view] = await self._hibernation.hibernate([id])
        return ok(RequestInfo.of(view))

    async def hibernate_all(self, request: Request) -> Response:
        """The same for all live requests."""
        if await read_body(request):
            raise InvalidRequest("this takes no body: POST /v1/requests/{id}/hibernate names a request")
        return ok(Listing([RequestInfo.of(view) for view in await self._hibernation.hibernate()]))

    async def stream(self, request: Request) -> Response:
        """What it says after the first `from` characters, until it has ended. Leaving does not cancel it."""
        id = self._id(request.path_params["id"])
        view, transcript = await self._service.get(id), self._service.roster.transcript(id)
        self._check_own(view, caller_of(request))
        if transcript is None:
            raise InvalidRequest(
                f"the text of request {id!r} is its own client's only; suspend or hibernate a live one to open it"
            )
        skip = _skipped(request.query_params, view.n)
        return EventStream(reattached(view, transcript, skip, self._hibernation.fetched), gone=lambda: None)

    def _check_own(self, view: RequestView, caller: Caller) -> None:
        if not caller.may_read(view):
            raise Forbidden(f"request {view.id} is another user's: this takes a key with the right admin")

    def _id(self, id: str) -> RequestId:
        """As this API lists it, or as it stands in an answer's body."""
        if not self._service.roster.knows(id):
            for prefix in _PREFIXES:
                id = id.removeprefix(prefix)
        return id


def _filters(query: QueryParams) -> Selection:
    """Raises InvalidRequest for a filter that is not there, or a value that it cannot have."""
    for name in query.keys() - FIELDS.keys():
        raise InvalidRequest(f"unknown filter {name!r} (there are: {', '.join(FIELDS)})", param=name)
    filters: dict[str, Any] = {FIELDS[name]: query[name] for name in query}
    return selection_of(CommandBody(command="ps", **filters))


def _skipped(query: QueryParams, n: int) -> list[int]:
    """Characters of each choice that the client has already: `from`, one number for all or one for each."""
    for name in query.keys() - {"from"}:
        raise InvalidRequest(f"unknown parameter {name!r} (there is: from)", param=name)
    numbers = query.get("from", "0").split(",")
    if len(numbers) not in (1, n) or not all(number.isascii() and number.isdigit() for number in numbers):
        raise InvalidRequest(f"from must be a number of characters, or {n} of them with commas between", param="from")
    skipped = [min(int(number[:20]), sys.maxsize) for number in numbers]
    return skipped * n if len(skipped) == 1 else skipped
