"""Commands that come over MQTT: bytes in, a reply out, whatever the bytes are."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from llmosd.application.access import Access
from llmosd.application.commands import Commands
from llmosd.application.frames import row
from llmosd.application.http.decode import decode_object
from llmosd.errors import LlmosError
from llmosd.types import RequestView
from llmosd.wire import UNREADABLE, Command, CommandError, CommandReply

log = logging.getLogger(__name__)


class CommandTopic:
    """What is sent to the broker may be read by others: replies show of a request what Frames do, without its label."""

    def __init__(self, node: str, commands: Commands, access: Access) -> None:
        self._node = node
        self._commands = commands
        self._access = access

    async def answer(self, payload: bytes, local: bool) -> CommandReply:
        """`local`: only this machine reaches the broker, so that nobody else can have sent it. Never raises."""
        try:
            command = decode_object(payload, Command, {})
            views = await self._commands.do(command, self._access.caller(command.key, local=local))
        except LlmosError as error:
            return self._reply(payload, (), CommandError(error.message, error.code, error.param))
        except Exception:
            log.exception("a command failed")
            what = CommandError("internal error; the daemon's log has details", "internal_error")
            return self._reply(payload, (), what)
        return self._reply(payload, views, None)

    def _reply(self, payload: bytes, views: Sequence[RequestView], error: CommandError | None) -> CommandReply:
        asked = _Asked()
        with suppress(*UNREADABLE):  # else nobody can be told which command it was
            asked = msgspec.json.decode(payload, type=_Asked)
        rows = tuple(replace(row(view), label="") for view in views)
        return CommandReply(self._node, time.time(), asked.ticket, asked.command, rows, error)


class _Asked(msgspec.Struct):
    ticket: str = ""
    command: str = ""
