"""What one request yields, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from llmosd.errors import Cancelled, LlmosError, StepError, Unavailable
from llmosd.types import Output, RequestId, RequestView, State


class RequestStream:
    """Outputs of one request in order; iteration ends with the request.

    Raises Cancelled, StepError or Unavailable where the request ended so. What is not read is kept: at most
    max_tokens × n outputs, so a slow reader holds that much and no more. `view` is there once the request is accepted
    and is replaced by the final one when it ended.
    """

    view: RequestView

    def __init__(self, id: RequestId, cancel: Callable[[RequestId, str], None]) -> None:
        self.id = id
        self._cancel = cancel
        self._outputs: deque[Output] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._reason = "no reason given"
        self._error: LlmosError | None = None

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        while not self._outputs and not self._over:
            self._news.clear()
            await self._news.wait()
        if self._outputs:
            return self._outputs.popleft()
        raise self._error or StopAsyncIteration

    def close(self, reason: str) -> None:
        """Cancel the request unless it has ended. What it yielded until then can still be read."""
        if not self._over:
            self._cancel(self.id, reason)

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self._news.set()

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
        self._over, self._error = True, error
        self._news.set()
