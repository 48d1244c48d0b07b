"""What the feed delivers to the monitor."""

from __future__ import annotations

from dataclasses import dataclass

from llmosd.wire import EventMessage, Frame, Status


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
