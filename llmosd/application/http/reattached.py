"""The answer of a request that somebody comes back to, as server-sent events in the shape of /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

from llmosd.application.http.completions import Completion, TextChoice
from llmosd.application.http.errors import error_body
from llmosd.application.http.sse import DONE, sse
from llmosd.application.transcript import Transcript
from llmosd.errors import LlmosError
from llmosd.types import RequestId, RequestView


async def reattached(
    view: RequestView, transcript: Transcript, skip: Sequence[int], fetched: Callable[[RequestId], None]
) -> AsyncGenerator[bytes, None]:
    """`fetched` is told when all of it, to the request's end, has been sent."""
    try:
        async for came in transcript.follow(skip):
            choices = [TextChoice(piece.choice, piece.text, finish_reason=piece.finish) for piece in came]
            yield sse(Completion(view.id, int(view.created_at), view.model, choices))
        yield DONE
        fetched(view.id)
    except LlmosError as error:
        yield sse(error_body(error))
