"""What requests yield, as it comes: one wake-up of the reader a step, however much a step brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from llmosd.application.flow import BackPressure, Flow
from llmosd.application.transcript import Transcript
from llmosd.errors import Cancelled, LlmosError, StepError, Unavailable
from llmosd.types import Output, RequestId, RequestView, State


class RequestStream:
    """Outputs of one live request in order, read by `together` for the client that asked.

    What is not read is kept. When that is much the request pauses, until all of it is taken or the time for that is
    over; what was on its way by then comes on top, a few tokens. `view` is there once the request is accepted and is
    replaced by the final one when it ended.

    A request that stands still by command, or has an image on disk, outlives its client; from then on others may read
    its transcript.
    """

    view: RequestView
    over = False  # no output follows those that are kept
    error: LlmosError | None = None  # what ended it early: Cancelled, StepError or Unavailable
    suspended = False
    durable = False  # it has an image, or is about to
    open_to_all = False

    def __init__(self, id: RequestId, transcript: Transcript, flow: Flow, limit: BackPressure) -> None:
        self.id = id
        self.transcript = transcript
        self._flow = flow
        self._limit = limit
        self.news = asyncio.Event()  # set by every output and by the end; `together` makes streams share one
        self._outputs: list[Output] = []
        self._unread = 0  # tokens
        self._full: asyncio.TimerHandle | None = None  # while it is: what happens if nobody reads
        self._reason = "no reason given"

    def take(self) -> list[Output]:
        """What came since it was last called."""
        outputs, self._outputs, self._unread = self._outputs, [], 0
        if self._full:
            self._empty()
            self._flow.unpause(self.id)
        return outputs

    def close(self, reason: str) -> None:
        """Cancel the request unless it has ended or outlives its client. What it yielded can still be read."""
        if self.over:
            return
        if self.suspended or self.durable:
            self.finish(None)
        else:
            self._flow.cancel(self.id, reason)

    def put(self, output: Output) -> None:
        self.transcript.add(output)
        if self.over:
            return
        self._outputs.append(output)
        self._unread += len(output.tokens)
        if self._unread >= self._limit.tokens and not self._full:
            self._full = asyncio.get_running_loop().call_later(self._limit.timeout_s, self._give_up)
            self._flow.pause(self.id)
        self.news.set()

    def moved(self, new: State, reason: str) -> None:
        """Along the state table; `reason` may be why it is about to end."""
        self._reason = reason
        self.suspended = new is State.SUSPENDED
        self.open_to_all |= self.suspended
        if self._full and new is State.DECODE:  # a person resumed it
            self._flow.pause(self.id)

    def end(self, view: RequestView, *, by_stop: bool = False, timeout: LlmosError | None = None) -> None:
        """`by_stop`: if it failed, then because the engine was stopped, not by an error of its own. `timeout` is why it
        failed where its time was over.
        """
        self.view = view
        error = timeout or self._ending(view, by_stop)
        self.transcript.end(error)
        self.finish(error)

    def finish(self, error: LlmosError | None) -> None:
        """No output follows."""
        if not self.over:
            self.over, self.error = True, error
            self._empty()
            self.news.set()

    def _empty(self) -> None:
        if self._full:
            self._full.cancel()
            self._full = None

    def _give_up(self) -> None:
        reason = f"its client read nothing for {self._limit.timeout_s:g} s"
        if self.suspended or self.durable:
            rest = f"/v1/requests/{self.id}/stream has the rest"
            self.finish(Cancelled(f"the stream of request {self.id} was given up: {reason}; {rest}"))
        else:
            self._flow.cancel(self.id, reason)

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
