"""What requests yield, as it comes: one wake-up of the reader a step, however much a step brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from llmosd.errors import Cancelled, LlmosError, StepError, Unavailable
from llmosd.types import Output, RequestId, RequestView, State


class RequestStream:
    """Outputs of one request in order, read by `together`.

    What is not read is kept: at most max_tokens × n outputs, so a slow reader holds that much and no more. `view` is
    there once the request is accepted and is replaced by the final one when it ended.
    """

    view: RequestView
    over = False  # no output follows those that are kept
    error: LlmosError | None = None  # what ended it early: Cancelled, StepError or Unavailable

    def __init__(self, id: RequestId, cancel: Callable[[RequestId, str], None]) -> None:
        self.id = id
        self._cancel = cancel
        self.news = asyncio.Event()  # set by every output and by the end; `together` makes streams share one
        self._outputs: list[Output] = []
        self._reason = "no reason given"

    def take(self) -> list[Output]:
        """What came since it was last called."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def close(self, reason: str) -> None:
        """Cancel the request unless it has ended. What it yielded until then can still be read."""
        if not self.over:
            self._cancel(self.id, reason)

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self.news.set()

    def explain(self, reason: str) -> None:
        """Why it is about to end."""
        self._reason = reason

    def end(self, view: RequestView, *, by_stop: bool = False) -> None:
        """`by_stop`: if it failed, then because the engine was stopped, not by an error of its own."""
        self.view = view
        if view.state is State.CANCELLED:
            self.finish(Cancelled(f"request {view.id} was cancelled: {self._reason}"))
        elif view.state is State.FAILED and by_stop:
            self.finish(Unavailable(f"the daemon was stopped before request {view.id} had ended: ask again later"))
        elif view.state is State.FAILED:
            self.finish(StepError(f"request {view.id} failed: {self._reason}"))
        else:
            self.finish(None)

    def finish(self, error: LlmosError | None) -> None:
        """No output follows."""
        self.over, self.error = True, error
        self.news.set()


async def together(streams: Sequence[RequestStream]) -> AsyncGenerator[list[tuple[int, Output]], None]:
    """What all of them gave since the last time, each output with its stream's index; ends when all have ended.

    Raises what ended one of them early, after what they gave until then. Streams have one reader.
    """
    news = asyncio.Event()
    for stream in streams:
        stream.news = news
    while True:
        news.clear()
        came = [(index, output) for index, stream in enumerate(streams) for output in stream.take()]
        over = all(stream.over for stream in streams)
        error = next((stream.error for stream in streams if stream.error), None)
        if came:
            yield came
        if error:
            raise error
        if over:
            return
        await news.wait()
