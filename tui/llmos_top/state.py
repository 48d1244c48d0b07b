"""What the monitor knows: a pure function of what arrived and when. No I/O and no clock of its own.

`now` is monotonic seconds of the monitor's host, so that a skewed clock on the daemon's host cannot make its Frames
look old or young. A retained Frame is history until a fresh one arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from llmosd.wire import EventMessage, Frame, Status

TICK_S = 1.0  # Frames come at 1 Hz
FRESH_S = 2 * TICK_S
SILENT_S = 10 * TICK_S
HISTORY = 120
EVENTS = 50


# ---------------------------------------------------------------- what arrives


@dataclass(frozen=True, slots=True)
class BrokerUp:
    """Connected and subscribed."""


@dataclass(frozen=True, slots=True)
class BrokerDown:
    """Connecting failed or the connection broke; the next attempt is `retry_in_s` away."""

    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """From the broker; `raw` is the message as received, `retained` says that it was sent before we subscribed."""

    frame: Frame
    raw: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class FrameStored:
    """The newest one in the database, read while the broker is away."""

    frame: Frame
    raw: bytes
    age_s: float


@dataclass(frozen=True, slots=True)
class StatusArrived:
    status: Status


@dataclass(frozen=True, slots=True)
class EventArrived:
    event: EventMessage


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message on a known topic that does not decode; `why` is safe to show."""

    why: str


Message = BrokerUp | BrokerDown | FrameArrived | FrameStored | StatusArrived | EventArrived | Unreadable


# ---------------------------------------------------------------- what is known


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


# ---------------------------------------------------------------- what it means


class Life(StrEnum):
    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"
    DAEMON_DOWN = "daemon down"
    BROKER_DOWN = "broker down"
    VIA_DB = "via db"


@dataclass(frozen=True, slots=True)
class Liveness:
    """`age_s` of the shown Frame where known; `retry_in_s` until the next attempt to connect, if one is due."""

    life: Life
    age_s: float | None = None
    retry_in_s: float | None = None

    @property
    def actionable(self) -> bool:
        """Whether the rows on screen are near enough to the present to act on."""
        return self.life in (Life.LIVE, Life.STALE, Life.VIA_DB)


def liveness(state: State, now: float) -> Liveness:
    """Two signals, the retained status with its last will and the Frame's age, and the state of the connection."""
    age = None if state.frame_at is None else max(0.0, now - state.frame_at)
    if state.broker is Broker.DOWN:
        return Liveness(_without_broker(state, age), age, max(0.0, state.retry_at - now))
    if state.broker is Broker.CONNECTING:
        return Liveness(Life.CONNECTING, age)
    if _said_offline(state):
        return Liveness(Life.DAEMON_DOWN, age)
    if age is not None and age < FRESH_S:
        return Liveness(Life.LIVE, age)
    connected = now - state.broker_since
    return Liveness(_without_frames(state, quiet=connected if age is None else min(age, connected)), age)


def _without_broker(state: State, age: float | None) -> Life:
    if state.source is Source.DATABASE and age is not None and age < SILENT_S:
        return Life.VIA_DB
    return Life.DAEMON_DOWN if _said_offline(state) else Life.BROKER_DOWN


def _without_frames(state: State, quiet: float) -> Life:
    """Connected, but no fresh Frame for `quiet` seconds of being connected."""
    if quiet < FRESH_S:
        return Life.CONNECTING
    if quiet >= SILENT_S or (state.frame is None and state.status is None):
        return Life.DAEMON_DOWN
    return Life.STALE if state.frame is not None else Life.CONNECTING


def _said_offline(state: State) -> bool:
    """The last word was an offline status. A fresh Frame after it (a late last will) outweighs it."""
    if state.status is None or state.status.state != "offline":
        return False
    return state.frame_at is None or state.status_at >= state.frame_at
