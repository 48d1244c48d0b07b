"""Which right each endpoint takes. One that is not named here: seeing for GET, administering for all else."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llmosd.application.access import Caller, Deed

OPEN = frozenset({"/health"})  # to callers without a key: a load balancer asks this

_DEEDS: Mapping[str, Deed] = {  # of what is no GET
    "/v1/chat/completions": Deed.SUBMIT,
    "/v1/completions": Deed.SUBMIT,
    "/v1/files": Deed.SUBMIT,
    "/v1/files/{id}": Deed.CONTROL,
    "/v1/batches": Deed.SUBMIT,
    "/v1/batches/{id}/cancel": Deed.CONTROL,
    "/v1/control": Deed.SEE,  # each command takes what it needs
    "/v1/requests/{id}": Deed.CONTROL,
    "/v1/requests/{id}/suspend": Deed.CONTROL,
    "/v1/requests/{id}/resume": Deed.CONTROL,
    "/v1/requests/{id}/hibernate": Deed.CONTROL,
}
_CALLER = "caller"


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["state"][_CALLER]
    return caller


def note_caller(scope: Scope, caller: Caller) -> None:
    scope["state"][_CALLER] = caller


def guarded(route: Route) -> Route:
    """The same route, for callers with the right that it takes; others get Forbidden."""
    app = route.app

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if route.path not in OPEN:
            reading = scope["method"] in ("GET", "HEAD")
            deed = Deed.SEE if reading else _DEEDS.get(route.path, Deed.ADMINISTER)
            scope["state"][_CALLER].check(deed)
        await app(scope, receive, send)

    route.app = checked
    return route
