"""Requests as the event loop knows them: who is live, who has ended lately, and what they said where that is open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from llmosd.application.stream import RequestStream
from llmosd.application.transcript import Transcript, Transcripts
from llmosd.errors import DeadlineExceeded, LlmosError, NotFound, QueueTimeout
from llmosd.types import (
    Accepted,
    Ended,
    Event,
    FinishReason,
    Nanoseconds,
    Output,
    RequestId,
    RequestView,
    State,
    StateChanged,
)

HISTORY = 1000  # ended requests that can still be looked up


class Roster:
    """Follows the engine's events, each of which it must be told, in their order."""

    def __init__(self) -> None:
        self._streams: dict[RequestId, RequestStream] = {}
        self._ended: dict[RequestId, RequestView] = {}
        self._transcripts = Transcripts()
        self._idle = asyncio.Event()
        self._idle.set()
        self._departed = asyncio.Event()  # another one for each departure

    # ---- coming and going

    def open(self, stream: RequestStream) -> RequestStream:
        self._streams[stream.id] = stream
        self._note_idle()
        return stream

    def forget(self, id: RequestId) -> RequestStream | None:
        stream = self._streams.pop(id, None)
        self._note_idle()
        return stream

    def remember(self, view: RequestView, texts: Sequence[str], finishes: Sequence[FinishReason | None]) -> None:
        """An answer that an earlier daemon finished."""
        transcript = Transcript(texts, finishes)
        transcript.end(None)
        self._ended[view.id] = view
        self._transcripts.add(view.id, transcript)

    def follow(self, event: Event, *, stopping: bool) -> None:
        """`stopping`: whoever is interrupted now is so by the daemon's end."""
        if type(event) is Output:  # by far the most
            if stream := self._streams.get(event.id):
                stream.put(event)
            return
        match event:
            case StateChanged(id=id, old=old, new=new, reason=reason):
                if stream := self._streams.get(id):
                    stream.moved(new, reason)
                    if State.SUSPENDED in (old, new):
                        self._note_idle()
            case Accepted(request=view):
                if stream := self._streams.get(view.id):
                    stream.view = view
                    stream.suspended = view.state is State.SUSPENDED
                    self._note_idle()
            case Ended():
                self._end(event, by_stop=stopping and event.interrupted)

    def _end(self, event: Ended, *, by_stop: bool) -> None:
        view = event.request
        self._ended[view.id] = view
        if len(self._ended) > HISTORY:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self._transcripts.forget(oldest)
        if stream := self.forget(view.id):
            stream.end(view, by_stop=by_stop, timeout=_timed_out(event))
            if stream.open_to_all:
                self._transcripts.add(view.id, stream.transcript)
        self._departed.set()
        self._departed = asyncio.Event()

    # ---- looking up

    def knows(self, id: RequestId) -> bool:
        return id in self._streams or id in self._ended

    def is_live(self, id: RequestId) -> bool:
        return id in self._streams

    def check_live(self, id: RequestId) -> None:
        """Raises NotFound for one that has ended."""
        if view := self._ended.get(id):
            raise NotFound(f"request {id!r} has already ended: {view.state}")

    def stream(self, id: RequestId) -> RequestStream | None:
        """Of a live request."""
        return self._streams.get(id)

    def ended(self, id: RequestId) -> RequestView | None:
        return self._ended.get(id)

    def listed(self, live: Iterable[RequestView]) -> list[RequestView]:
        """Live ones first, each group youngest first; the last `HISTORY` ended ones are remembered."""
        rest = [view for view in live if view.id not in self._ended]
        return sorted(rest, key=_arrived, reverse=True) + sorted(self._ended.values(), key=_arrived, reverse=True)

    def transcript(self, id: RequestId) -> Transcript | None:
        """What it said, where that is open to all: it was suspended, hibernated or restored at some time."""
        if stream := self._streams.get(id):
            return stream.transcript if stream.open_to_all else None
        return self._transcripts.get(id)

    @property
    def suspended(self) -> frozenset[RequestId]:
        return frozenset(id for id, stream in self._streams.items() if stream.suspended)

    async def departure(self) -> None:
        """Returns when the next request has ended."""
        await self._departed.wait()

    # ---- idleness

    async def idle(self) -> None:
        """Returns when no request is live but those that stand still by command."""
        await self._idle.wait()

    def _note_idle(self) -> None:
        if all(stream.suspended for stream in self._streams.values()):
            self._idle.set()
        else:
            self._idle.clear()


def _timed_out(event: Ended) -> LlmosError | None:
    message = f"request {event.request.id} failed: {event.request.error}"
    match event.timeout:
        case "deadline":
            return DeadlineExceeded(message)
        case "queue":
            return QueueTimeout(f"{message}; try again later", retry_after_s=event.retry_after_s)
    return None


def _arrived(view: RequestView) -> Nanoseconds:
    return view.arrived
