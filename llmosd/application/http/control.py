"""POST /v1/control: the commands that MQTT takes, with the same fields."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.commands import Commands
from llmosd.application.http.decode import decode_object, read_body
from llmosd.application.http.reply import Listing, ok
from llmosd.application.http.rights import caller_of
from llmosd.application.listing import RequestInfo
from llmosd.wire import CommandBody


class ControlEndpoint:
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def post(self, request: Request) -> Response:
        """The requests that the command was about, as they are now."""
        command = decode_object(await read_body(request), CommandBody, {})
        return ok(Listing([RequestInfo.of(view) for view in await self._commands.do(command, caller_of(request))]))
