"""What happened, as the kernel tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmosd.record import record
from llmosd.types.latency import Nanoseconds
from llmosd.types.requests import FinishReason, RequestId, RequestView, State
from llmosd.types.steps import TokenLogprob


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request entered the table; it is stored before the client is answered.

    A restored one was accepted by an earlier daemon, and enters suspended.
    """

    request: RequestView
    restored: bool = False


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A request moved along the state table (including into an ended state)."""

    id: RequestId
    old: State
    new: State
    now: Nanoseconds
    reason: str = ""

    @property
    def is_preemption(self) -> bool:
        """Whether it lost its pages; one that is resumed, or whose swapped pages are lost, did so before."""
        return self.new in (State.PREEMPTED, State.SWAPPED) and self.old in (State.PREFILL, State.DECODE)


@record(frozen=True, slots=True)
class Output:
    """New text or tokens of one choice, or its end. Exactly one Output per choice carries `finish`."""

    id: RequestId
    choice: int
    tokens: tuple[int, ...]
    text: str
    now: Nanoseconds
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A request left the table: finished, cancelled or failed. `request` is its final view.

    `interrupted`: it failed because the engine stopped or died, not by an error of its own. `timeout`: it failed as its
    deadline passed, or the time that it might wait in the queue; then `retry_after_s` says when there may be room.
    """

    request: RequestView
    now: Nanoseconds
    interrupted: bool = False
    timeout: Literal["", "deadline", "queue"] = ""
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Evicted:
    """A request gave its pages up, to others or because it was suspended: what its way back was expected to cost."""

    id: RequestId
    way: Literal["recompute", "swap"]
    pages: int
    tokens: int  # whose K and V they hold
    recompute_s: float
    swap_s: float | None  # None where the swap space had no room
    backlog_s: float  # what swapping would have had to wait for
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class Restored:
    """An evicted request is where it was: what the way it took has cost, beside what was expected of it.

    `took_s` is work on transfers and the recomputed tokens' share of their steps.
    """

    id: RequestId
    way: Literal["recompute", "swap"]
    expected_s: float
    took_s: float
    recomputed_tokens: int
    now: Nanoseconds
    error: str | None = None  # of a transfer: what was lost has been computed again


@dataclass(frozen=True, slots=True)
class SwapFailed:
    """Pages of a request could not be written or read back; it computes again what was in them."""

    id: RequestId
    inward: bool
    pages: int
    error: str  # the first
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model is in memory, with a page pool of so many pages."""

    model: str
    pages: int
    ns: Nanoseconds  # that it took
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A model could not be loaded; requests that waited for it have failed."""

    model: str
    error: str
    now: Nanoseconds


UnloadReason = Literal["idle", "room", "asked"]


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model is out of memory: it had been idle for long, another needed the room, or a person wanted it so."""

    model: str
    reason: UnloadReason
    ns: Nanoseconds
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy orders the requests of this model; or `dynamic` has changed what it does, and says why."""

    model: str
    old: str
    new: str
    reason: str
    now: Nanoseconds


Event = (
    Accepted
    | StateChanged
    | Output
    | Ended
    | Evicted
    | Restored
    | SwapFailed
    | Loaded
    | LoadFailed
    | Unloaded
    | PolicyChanged
)
