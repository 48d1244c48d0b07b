"""Lines of batches reach the generating endpoints as if posted by a client that never leaves."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from llmosd.application.access import Caller
from llmosd.application.batch.job import Batch
from llmosd.application.http.chat import ChatEndpoint
from llmosd.application.http.completions import CompletionsEndpoint
from llmosd.application.http.edge import inner_state
from llmosd.application.http.errors import defect_response, error_response
from llmosd.application.http.generation import Backing
from llmosd.application.http.rights import note_caller
from llmosd.application.keys import Right
from llmosd.errors import InvalidRequest, LlmosError, QueueFull, Unavailable
from llmosd.types import RequestId

log = logging.getLogger(__name__)


class _Asked(msgspec.Struct):
    stream: bool | None = None


class LinePost:
    """Status and body of the answer. Raises QueueFull and Unavailable: those say nothing about the line."""

    def __init__(self, backing: Backing) -> None:
        self._clock = backing.service.clock
        self._endpoints = {
            "/v1/chat/completions": ChatEndpoint(backing).post,
            "/v1/completions": CompletionsEndpoint(backing).post,
        }

    async def __call__(self, batch: Batch, id: RequestId, body: bytes) -> tuple[int, bytes]:
        response = await self._answer(batch, id, body)
        return response.status_code, bytes(response.body)

    async def _answer(self, batch: Batch, id: RequestId, body: bytes) -> Response:
        try:
            _refuse_stream(body)
            return await self._endpoints[batch.endpoint](self._request(batch, id, body))
        except (QueueFull, Unavailable):
            raise
        except LlmosError as error:
            return error_response(error)
        except Exception:
            log.exception("request %s of a batch", id)
            return defect_response()

    def _request(self, batch: Batch, id: RequestId, body: bytes) -> Request:
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": batch.endpoint,
            "query_string": b"",
            "headers": [(b"x-session-id", batch.id.encode())],
            "state": inner_state(id, self._clock()),
        }
        note_caller(scope, Caller(Right.OWN, batch.user or None))
        unread = [body]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        return Request(scope, receive)


def _refuse_stream(body: bytes) -> None:
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except msgspec.MsgspecError:
        return  # the endpoint says what is wrong
    if asked.stream:
        raise InvalidRequest("a batch cannot stream: leave stream out", param="stream")
