"""Where a request's time goes, in integer nanoseconds, so that parts sum to their whole exactly."""

from __future__ import annotations

from dataclasses import astuple
from enum import StrEnum

from llmosd.record import record

Nanoseconds = int


class WaitReason(StrEnum):
    """Why a queued request is not admitted."""

    SLOTS = "slots"  # others hold them
    PAGES = "pages"  # others hold them, or they are on their way to disk
    QUOTA = "quota"  # its user's
    POLICY = "policy"  # a request that came later goes before it
    MODEL = "model"  # its model is not in memory, or makes room for another
    STEP = "step"  # a step is under way, or had no tokens of its budget left


@record(frozen=True, slots=True)
class QueuedTime:
    """Queued time by reason; one field for each WaitReason, in its order."""

    slots: Nanoseconds = 0
    pages: Nanoseconds = 0
    quota: Nanoseconds = 0
    policy: Nanoseconds = 0
    model: Nanoseconds = 0
    step: Nanoseconds = 0

    @property
    def total(self) -> Nanoseconds:
        return sum(astuple(self))


@record(frozen=True, slots=True)
class TimeSplit:
    """queued + prefill + decode + preempted + other = total.

    `queued_by` has the parts of `queued`. What follows it are parts of `other`; their `rest` is the time until the
    request was here as a whole, and that in which no daemon ran.
    """

    queued: Nanoseconds = 0
    prefill: Nanoseconds = 0
    decode: Nanoseconds = 0
    preempted: Nanoseconds = 0
    other: Nanoseconds = 0
    queued_by: QueuedTime = QueuedTime()
    tokenise: Nanoseconds = 0
    swapped: Nanoseconds = 0
    suspended: Nanoseconds = 0
    paused: Nanoseconds = 0  # by a client that did not read

    @property
    def total(self) -> Nanoseconds:
        return self.queued + self.prefill + self.decode + self.preempted + self.other

    @property
    def rest(self) -> Nanoseconds:
        return self.other - self.tokenise - self.swapped - self.suspended - self.paused


Timeline = tuple[tuple[str, Nanoseconds], ...]
"""(state, when it began) in order; times count from the request's arrival. See `system/timeline.py`."""
