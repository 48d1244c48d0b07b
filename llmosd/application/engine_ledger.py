"""The caller's side of an engine: who waits for what, so that the end of the engine leaves nobody waiting."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from llmosd.application.engine_messages import Batch, Reply
from llmosd.errors import Unavailable
from llmosd.types import (
    Accepted,
    Ended,
    Event,
    KernelStats,
    Nanoseconds,
    Output,
    RequestId,
    RequestView,
    State,
    StateChanged,
    TimeSplit,
)


class Ledger:
    """Hands batches over and keeps the accounts of open tickets and live requests. Thread-safe.

    After `close` every ticket is answered Unavailable and no request is live.
    """

    def __init__(self, deliver: Callable[[Batch], None]) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._tickets: set[int] = set()
        self._live: dict[RequestId, RequestView] = {}
        self._tokens: Counter[RequestId] = Counter()
        self._stats: KernelStats | None = None
        self._closed = "the engine has not been started"

    def open(self, stats: KernelStats) -> None:
        """The engine is there: commands are taken from now on."""
        with self._lock:
            self._stats, self._closed = stats, ""

    def take(self, ticket: int) -> bool:
        """Open a ticket; if the engine is gone, answer it at once and return False."""
        with self._lock:
            if not self._closed:
                self._tickets.add(ticket)
                return True
        self._hand_over((Reply(ticket, Unavailable(self._closed)),), ())
        return False

    def pass_on(self, batch: Batch) -> None:
        """Deliver a batch of the engine's and keep the accounts."""
        with self._lock:
            self._stats = batch.stats
            self._tickets.difference_update(reply.ticket for reply in batch.replies)
            for event in batch.events:
                self._account(event)
        self._deliver(batch)

    def close(self, message: str, now: Nanoseconds) -> None:
        """The engine is gone: fail what is live, answer what is open, with this message."""
        with self._lock:
            self._closed = message
            replies = tuple(Reply(ticket, Unavailable(message)) for ticket in sorted(self._tickets))
            events = tuple(event for view in self._live.values() for event in self._failure(view, message, now))
            self._tickets.clear()
            self._live.clear()
        if replies or events:
            self._hand_over(replies, events)

    def _hand_over(self, replies: tuple[Reply, ...], events: tuple[Event, ...]) -> None:
        if self._stats is None:
            raise Unavailable(self._closed)
        self._deliver(Batch(replies, events, None, self._stats))

    def _account(self, event: Event) -> None:
        if type(event) is Output:  # by far the most
            self._tokens[event.id] += len(event.tokens)
            return
        match event:
            case Accepted():
                self._live[event.request.id] = event.request
            case StateChanged():
                self._live[event.id] = replace(self._live[event.id], state=event.new)
            case Ended():
                del self._live[event.request.id]
                del self._tokens[event.request.id]

    def _failure(self, view: RequestView, message: str, now: Nanoseconds) -> tuple[Event, Event]:
        ended = replace(
            view,
            state=State.FAILED,
            error=message,
            completion_tokens=self._tokens.pop(view.id, 0),
            times=TimeSplit(other=now - view.arrived),
            position=None,
            pages=0,
        )
        return StateChanged(view.id, view.state, State.FAILED, now, message), Ended(ended, now, interrupted=True)
