"""What happened, in words: kernel events become numbered EventMessages for the bus and the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from llmosd.application.plain import plain
from llmosd.types import (
    Accepted,
    Ended,
    Event,
    Evicted,
    Loaded,
    LoadFailed,
    PolicyChanged,
    RequestView,
    Restored,
    State,
    StateChanged,
    SwapFailed,
    Unloaded,
)
from llmosd.wire import EventMessage

TEXT_LIMIT = 300

Sink = Callable[[EventMessage], None]


_UNLOADED = {"idle": "idle for long", "room": "another needs the memory", "asked": "as somebody asked"}


class EventLog:
    """Numbers messages and hands each to every sink. What users wrote goes out escaped, prompts not at all.

    Severities are `info`, `warning` and `error`; kinds are dotted, `request.failed`.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._seq = 0
        self._sinks: list[Sink] = []

    def attach(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def note(self, severity: str, kind: str, text: str, request: str | None = None) -> None:
        message = self.message(severity, kind, text, request)
        for sink in self._sinks:
            sink(message)

    def message(self, severity: str, kind: str, text: str, request: str | None = None) -> EventMessage:
        """The next message, handed to nobody."""
        self._seq += 1
        safe_id = None if request is None else plain(request, TEXT_LIMIT)
        text = plain(text, TEXT_LIMIT)
        return EventMessage(self._node, self._seq, time.time(), severity, kind, text, request=safe_id)

    def note_kernel(self, events: Iterable[Event]) -> None:
        """Requests that came, were preempted, came back and left; the rest is in Frames and rows."""
        reasons: dict[str, str] = {}  # of a cancellation: the view that follows has none
        for event in events:
            match event:
                case StateChanged(id=id, new=State.CANCELLED, reason=reason):
                    reasons[id] = reason
                case Accepted(request=view, restored=False):
                    text = f"accepted: {view.prompt_tokens} prompt tokens, nice {view.nice}"
                    self.note("info", "request.accepted", text, view.id)
                case StateChanged(id=id, is_preemption=True):
                    self.note("warning", "request.preempted", "preempted: its pages went to others", id)
                case Evicted():
                    self.note("info", "request.evicted", _eviction(event), event.id)
                case Restored():
                    self.note("info", "request.restored", _restoration(event), event.id)
                case SwapFailed():
                    verb = "read back from" if event.inward else "written to"
                    text = f"{event.pages} pages not {verb} the swap space: {event.error}; they are computed again"
                    self.note("warning", "request.swap_failed", text, event.id)
                case Loaded():
                    text = f"loaded in {event.ns / 1e6:.0f} ms with {event.pages} pages"
                    self.note("info", "model.loaded", f"{event.model}: {text}")
                case Unloaded():
                    self.note("info", "model.unloaded", f"{event.model}: unloaded, {_UNLOADED[event.reason]}")
                case LoadFailed():
                    self.note("error", "model.failed", f"{event.model}: not loaded: {event.error}")
                case PolicyChanged():
                    self.note("info", "policy.changed", f"{event.model}: {event.old} → {event.new}: {event.reason}")
                case Ended(request=view):
                    severity = "error" if view.state is State.FAILED else "info"
                    self.note(severity, f"request.{view.state}", _ending(view, reasons.get(view.id)), view.id)


def _eviction(event: Evicted) -> str:
    swap = "no room in the swap space" if event.swap_s is None else f"swap {1e3 * event.swap_s:.1f} ms"
    expected = f"{swap}, recompute {1e3 * event.recompute_s:.1f} ms expected"
    return f"{event.pages} pages of {event.tokens} tokens given up, back by {event.way}: {expected}"


def _restoration(event: Restored) -> str:
    error = f"; {event.error}: {event.recomputed_tokens} tokens computed again" if event.error else ""
    return f"back by {event.way}: {1e3 * event.took_s:.1f} ms, {1e3 * event.expected_s:.1f} ms expected{error}"


def _ending(view: RequestView, reason: str | None) -> str:
    why = view.error or view.finish or reason or "no reason given"
    return f"{view.state}: {why}; {view.completion_tokens} tokens in {view.times.total / 1e9:.2f} s"
