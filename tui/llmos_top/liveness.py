"""Whether what is on the screen is of this moment, and if not, which part is missing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llmos_top.state import TICK_S, Broker, Source, State

FRESH_S = 2 * TICK_S
SILENT_S = 10 * TICK_S


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
