"""The process table over HTTP: /v1/requests and /v1/requests/{id}, and reading what a request has said."""

from __future__ import annotations

import sys

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.decode import read_body
from llmosd.application.http.generation import Backing
from llmosd.application.http.reattached import reattached
from llmosd.application.http.reply import Listing, ok
from llmosd.application.http.schema import priority_of
from llmosd.application.http.sse import EventStream
from llmosd.application.listing import RequestDetail, RequestInfo
from llmosd.errors import InvalidRequest
from llmosd.types import RequestId, State

_FILTERS = frozenset({"user", "state"})
_PREFIXES = ("chatcmpl-", "cmpl-")  # of the ids in answers; what follows is the request's own


class RequestsEndpoint:
    def __init__(self, backing: Backing) -> None:
        self._service = backing.service
        self._hibernation = backing.hibernation

    async def list(self, request: Request) -> Response:
        """Live requests and the last ended ones, youngest first, filtered by exact `user` and `state`."""
        filters = request.query_params
        for name in filters.keys() - _FILTERS:
            raise InvalidRequest(f"unknown filter {name!r} (there are: user, state)", param=name)
        if (state := filters.get("state")) is not None and state not in set(State):
            raise InvalidRequest(f"state must be one of {', '.join(State)}", param="state")
        rows = map(RequestInfo.of, await self._service.requests())
        return ok(Listing([row for row in rows if all(getattr(row, name) == filters[name] for name in filters)]))

    async def one(self, request: Request) -> Response:
        """GET shows it, DELETE cancels it, PATCH {"priority": n} gives it that nice value from the next step on."""
        id = self._id(request.path_params["id"])
        match request.method:
            case "DELETE":
                view = await self._service.cancel(id, "cancelled by DELETE /v1/requests")
            case "PATCH":
                view = await self._service.renice(id, priority_of(await read_body(request)))
            case _:
                return ok(await self._detail(id))
        return ok(RequestInfo.of(view))

    async def _detail(self, id: RequestId) -> RequestDetail:
        """With its text where that is open to all; who gets the whole answer has fetched it."""
        view = await self._service.get(id)
        detail = RequestDetail.with_text(view, self._service.roster.transcript(id))
        if view.state is State.FINISHED:
            self._hibernation.fetched(id)
        return detail

    async def suspend(self, request: Request) -> Response:
        """It neither runs nor waits until it is resumed; its stream stays open."""
        return ok(RequestInfo.of(await self._service.suspend(self._id(request.path_params["id"]))))

    async def resume(self, request: Request) -> Response:
        """It takes its place in the queue again."""
        return ok(RequestInfo.of(await self._service.resume(self._id(request.path_params["id"]))))

    async def hibernate(self, request: Request) -> Response:
        """It stands still until it is resumed, or until the next daemon takes it up; on disk when this is answered."""
        [view] = await self._hibernation.hibernate([self._id(request.path_params["id"])])
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
        if transcript is None:
            raise InvalidRequest(
                f"the text of request {id!r} is its own client's only; suspend or hibernate a live one to open it"
            )
        skip = _skipped(request.query_params, view.n)
        return EventStream(reattached(view, transcript, skip, self._hibernation.fetched), gone=lambda: None)

    def _id(self, id: str) -> RequestId:
        """As this API lists it, or as it stands in an answer's body."""
        if not self._service.roster.knows(id):
            for prefix in _PREFIXES:
                id = id.removeprefix(prefix)
        return id


def _skipped(query: QueryParams, n: int) -> list[int]:
    """Characters of each choice that the client has already: `from`, one number for all or one for each."""
    for name in query.keys() - {"from"}:
        raise InvalidRequest(f"unknown parameter {name!r} (there is: from)", param=name)
    numbers = query.get("from", "0").split(",")
    if len(numbers) not in (1, n) or not all(number.isascii() and number.isdigit() for number in numbers):
        raise InvalidRequest(f"from must be a number of characters, or {n} of them with commas between", param="from")
    skipped = [min(int(number[:20]), sys.maxsize) for number in numbers]
    return skipped * n if len(skipped) == 1 else skipped
