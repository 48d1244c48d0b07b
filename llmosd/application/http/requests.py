"""The process table over HTTP: /v1/requests and /v1/requests/{id}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.decode import read_body
from llmosd.application.http.reply import Listing, ok
from llmosd.application.http.schema import priority_of
from llmosd.application.listing import RequestInfo
from llmosd.application.service import Service
from llmosd.errors import InvalidRequest
from llmosd.types import RequestId, State

_FILTERS = frozenset({"user", "state"})
_PREFIXES = ("chatcmpl-", "cmpl-")  # of the ids in answers; what follows is the request's own


class RequestsEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

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
                view = await self._service.get(id)
        return ok(RequestInfo.of(view))

    async def suspend(self, request: Request) -> Response:
        """It neither runs nor waits until it is resumed; its stream stays open."""
        return ok(RequestInfo.of(await self._service.suspend(self._id(request.path_params["id"]))))

    async def resume(self, request: Request) -> Response:
        """It takes its place in the queue again."""
        return ok(RequestInfo.of(await self._service.resume(self._id(request.path_params["id"]))))

    def _id(self, id: str) -> RequestId:
        """As this API lists it, or as it stands in an answer's body."""
        if not self._service.knows(id):
            for prefix in _PREFIXES:
                id = id.removeprefix(prefix)
        return id
