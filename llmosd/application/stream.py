"""What requests yield, as it comes: one wake-up of the reader a step, however much a step brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from llmosd.application.transcript import Transcript
from llmosd.errors import Cancelled, LlmosError, StepError, Unavailable
from llmosd.types import Output, RequestId, RequestView, State


class RequestStream:
    """Outputs of one live request in order, read by `together` for the client that asked.

    What is not read is kept: at most max_tokens × n outputs, so a slow reader holds that much and no more. `view` is
    there once the request is accepted and is replaced by the final one when it ended.

    A request that stands still by command, or has an image on disk, outlives its client; from then on others may read
    its transcript.
    """

    view: RequestView
    over = False  # no output follows those that are kept
    error: LlmosError | None = None  # what ended it early: Cancelled, StepError or Unavailable
    suspended = False
    durable = False  # it has an image, or is about to
    open_to_all = False

    def __init__(self, id: RequestId, transcript: Transcript, cancel: Callable[[RequestId, str], None]) -> None:
        self.id = id
        self.transcript = transcript
        self._cancel = cancel
        self.news = asyncio.Event()  # set by every output and by the end; `together` makes streams share one
        self._outputs: list[Output] = []
        self._reason = "no reason given"

    def take(self) -> list[Output]:
        """What came since it was last called."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def close(self, reason: str) -> None:
        """Cancel the request unless it has ended or outlives its client. What it yielded can still be read."""
        if self.over:
            return
        if self.suspended or self.durable:
            self.finish(None)
        else:
            self._cancel(self.id, reason)

    def put(self, output: Output) -> None:
        self.transcript.add(output)
        if not self.over:
            self._outputs.append(output)
            self.news.set()

    def moved(self, new: State, reason: str) -> None:
        """Along the state table; `reason` may be why it is about to end."""
        self._reason = reason
        self.suspended = new is State.SUSPENDED
        self.open_to_all |= self.suspended

    def end(self, view: RequestView, *, by_stop: bool = False) -> None:
        """`by_stop`: if it failed, then because the engine was stopped, not by an error of its own."""
        self.view = view
        error = self._ending(view, by_stop)
        self.transcript.end(error)
        self.finish(error)

    def finish(self, error: LlmosError | None) -> None:
        """No output follows."""
        if not self.over:
            self.over, self.error = True, error
            self.news.set()

    def _ending(self, view: RequestView, by_stop: bool) -> LlmosError | None:
        if view.state is State.CANCELLED:
            return Cancelled(f"request {view.id} was cancelled: {self._reason}")
        if view.state is State.FAILED and by_stop and self.durable:
            return Unavailable(f"the daemon was stopped; the next one takes up request {view.id} where it was")
        if view.state is State.FAILED and by_stop:
            return Unavailable(f"the daemon was stopped before request {view.id} had ended: ask again later")
        if view.state is State.FAILED:
            return StepError(f"request {view.id} failed: {self._reason}")
        return None


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
