"""What the monitor knows: a pure function of what arrived and when. No I/O and no clock of its own.

`now` is monotonic seconds of the monitor's host, so that a skewed clock on the daemon's host cannot make its Frames
look old or young. A retained Frame is history until a fresh one arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from llmos_top.messages import (
    BrokerDown,
    BrokerUp,
    EventArrived,
    FrameArrived,
    FrameStored,
    Message,
    StatusArrived,
    Unreadable,
)
from llmosd.wire import EventMessage, Frame, Status

TICK_S = 1.0  # Frames come at 1 Hz
HISTORY = 120
EVENTS = 50


class Broker(StrEnum):
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


class Source(StrEnum):
    """Where the Frame on screen came from."""

    NONE = "none"
    LIVE = "live"
    RETAINED = "retained"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class State:
    """`frame_at` is when the shown Frame was fresh, None if it never was; `pinned`: the user named the node."""

    node: str | None = None
    pinned: bool = False
    broker: Broker = Broker.CONNECTING
    broker_since: float = 0.0
    broker_error: str = ""
    retry_at: float = 0.0
    status: Status | None = None
    status_at: float = 0.0
    frame: Frame | None = None
    raw: bytes = b""
    frame_at: float | None = None
    source: Source = Source.NONE
    history: tuple[Frame | None, ...] = ()
    events: tuple[EventMessage, ...] = ()
    other_nodes: frozenset[str] = frozenset()
    unreadable: str = ""

    def series(self, value: Callable[[Frame], float | None]) -> list[float | None]:
        """One value per second, oldest first; None where a Frame is missing."""
        return [None if frame is None else value(frame) for frame in self.history]


def reduce(state: State, message: Message, now: float) -> State:
    """The state after `message` arrived at `now`."""
    match message:
        case BrokerUp():
            return replace(state, broker=Broker.UP, broker_since=now, broker_error="")
        case BrokerDown(reason, retry_in_s):
            since = state.broker_since if state.broker is Broker.DOWN else now
            return replace(
                state, broker=Broker.DOWN, broker_since=since, broker_error=reason, retry_at=now + retry_in_s
            )
        case FrameArrived(frame, raw, retained):
            return _frame_arrived(state, frame, raw, retained, now)
        case FrameStored(frame, raw, age_s):
            return _frame_stored(state, frame, raw, now - age_s)
        case StatusArrived(status):
            return _status_arrived(state, status, now)
        case EventArrived(event):
            if state.node not in (None, event.node):
                return state
            return replace(state, events=(*state.events, event)[-EVENTS:])
        case Unreadable(why):
            return replace(state, unreadable=why)


def _frame_arrived(state: State, frame: Frame, raw: bytes, retained: bool, now: float) -> State:
    state = _choose_node(state, frame.node, fresh=not retained)
    if frame.node != state.node:
        return state
    if retained:
        newer = state.frame is None or frame.at > state.frame.at
        return replace(state, frame=frame, raw=raw, source=Source.RETAINED) if newer else state
    return replace(
        state,
        frame=frame,
        raw=raw,
        frame_at=now,
        source=Source.LIVE,
        history=_extend(state.history, frame),
        unreadable="",
    )


def _frame_stored(state: State, frame: Frame, raw: bytes, fresh_at: float) -> State:
    state = _choose_node(state, frame.node, fresh=False)
    if frame.node != state.node or (state.frame is not None and frame.at <= state.frame.at):
        return state
    history = _extend(state.history, frame)
    return replace(state, frame=frame, raw=raw, frame_at=fresh_at, source=Source.DATABASE, history=history)


def _status_arrived(state: State, status: Status, now: float) -> State:
    state = _choose_node(state, status.node, fresh=False)
    return replace(state, status=status, status_at=now) if status.node == state.node else state


def _choose_node(state: State, node: str, *, fresh: bool) -> State:
    """The first node heard of is shown, unless the user named one; a live node takes over from one never seen alive."""
    if state.node == node:
        return state
    if state.node is None:
        return replace(state, node=node)
    others = state.other_nodes | {node}
    if state.pinned or not fresh or state.frame_at is not None:
        return replace(state, other_nodes=others) if node not in state.other_nodes else state
    others = (others | {state.node}) - {node}
    return State(
        node=node, broker=state.broker, broker_since=state.broker_since, events=(), other_nodes=frozenset(others)
    )


def _extend(history: tuple[Frame | None, ...], frame: Frame) -> tuple[Frame | None, ...]:
    """Append one second; seconds without a Frame become None. Rows are dropped: graphs do not need them."""
    last = next((f for f in reversed(history) if f is not None), None)
    missed = 0 if last is None else round((frame.at - last.at) / TICK_S) - 1
    gap = (None,) * min(max(missed, 0), HISTORY)
    return (*history, *gap, replace(frame, requests=()))[-HISTORY:]
