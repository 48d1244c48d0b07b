"""What every HTTP request passes first: its id, the checks against hostile web pages, and what is counted of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmosd.application.access import Access
from llmosd.application.http.errors import defect_response, error_response
from llmosd.application.http.rights import OPEN, note_caller
from llmosd.application.service import Service
from llmosd.errors import Forbidden, Unauthorized
from llmosd.types import Nanoseconds, RequestId, ServiceClass

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID, _ARRIVED, _CLASS = "request_id", "arrived", "service_class"

Observe = Callable[[str, str, int], None]  # method, route, status


def request_id(request: Request) -> RequestId:
    id: RequestId = request.scope["state"][_ID]
    return id


def arrived(request: Request) -> Nanoseconds:
    """When its headers were here."""
    time: Nanoseconds = request.scope["state"][_ARRIVED]
    return time


def service_class(request: Request) -> ServiceClass | None:
    """Where the daemon itself asks; None where a client does, who may say it in the body."""
    found: ServiceClass | None = request.scope["state"].get(_CLASS)
    return found


def inner_state(id: RequestId, arrived: Nanoseconds) -> dict[str, Any]:
    """Of a request that the daemon makes on a batch's behalf."""
    return {_ID: id, _ARRIVED: arrived, _CLASS: "batch"}


class Edge:
    """ASGI middleware, outermost.

    Every answer carries `X-Request-Id`: the client's own where that is sane and not taken, else a new one. A web page
    must not reach a daemon through its visitor's browser: its requests carry an `Origin` that is not this server's,
    and after DNS rebinding a `Host` that is no name of loopback. Both are refused, and no CORS header is sent.
    Whoever has to show a key (`Authorization: Bearer …`) and shows none that is known is refused as well.
    """

    def __init__(self, app: ASGIApp, service: Service, access: Access, host: str, observe: Observe) -> None:
        self._app = app
        self._service = service
        self._access = access
        self._loopback_only = is_loopback(host)
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        id = self._id(headers.get("x-request-id", ""))
        scope.setdefault("state", {}).update({_ID: id, _ARRIVED: self._service.clock()})
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = id
            await send(message)

        try:
            self._check_origin(headers)
            if scope["path"] not in OPEN:
                note_caller(scope, self._access.caller(_key(headers)))
            await self._app(scope, receive, send_marked)
        except (Forbidden, Unauthorized) as error:
            await error_response(error)(scope, receive, send_marked)
        except ClientDisconnect:
            pass  # while it sent its body: nobody is there to be answered
        except Exception:
            if not status:
                await defect_response()(scope, receive, send_marked)
            raise
        finally:
            if status:
                self._observe(scope["method"], getattr(scope.get("route"), "path", "unknown"), status)

    def _id(self, wanted: str) -> RequestId:
        if _SANE_ID.fullmatch(wanted) and not self._service.roster.knows(wanted):
            return wanted
        return self._service.new_id()

    def _check_origin(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and not is_loopback(_name(host)):
            raise Forbidden(f"this daemon serves its own machine only, not the host {host[:100]!r}")
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden("requests from web pages of other origins are refused")


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _key(headers: Headers) -> str:
    """As OpenAI's clients send it; empty where there is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _name(host: str) -> str:
    """The host name of a Host header, without port and brackets; empty where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
