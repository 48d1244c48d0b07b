"""The scheduling policy over HTTP: /v1/policy shows it and changes it."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.decode import decode_object, read_body
from llmosd.application.http.reply import ok
from llmosd.application.listing import PolicyInfo
from llmosd.application.service import Service


class PolicyBody(msgspec.Struct):
    policy: str


class PolicyEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def one(self, request: Request) -> Response:
        """GET shows which one orders requests and all there are, PUT {"policy": name} sets it from the next step on."""
        if request.method == "PUT":
            await self._service.set_policy(decode_object(await read_body(request), PolicyBody, {}).policy)
        return ok(PolicyInfo.of(await self._service.inspect()))
