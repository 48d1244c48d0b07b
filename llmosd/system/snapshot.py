"""A request taken out of a kernel as plain data, to go on in another: nothing but its tokens has to be kept.

Random numbers are a function of seed, choice and position; penalties, text and what the detokenizer holds back follow
from the tokens; K and V are computed again. So a restored request generates what it would have generated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmosd.errors import InvalidRequest
from llmosd.system.accounts import Account, PageMeter
from llmosd.system.request import Request
from llmosd.system.waiting import WaitClock
from llmosd.types import FinishReason, Nanoseconds, RequestId, RequestSpec, SequenceId, Timeline, TimeSplit


@dataclass(frozen=True, slots=True)
class Branch:
    """One choice: what it has generated, and why it stopped if it has."""

    tokens: tuple[int, ...]
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class KeptPages:
    """K and V of `pages` full pages, numbered from 0: `columns` has for each live branch those of its history's
    beginning, in order. Branches may share pages.
    """

    page_tokens: int
    pages: int
    columns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A live request at one moment. Of its times on the clock only durations are kept: `spec.arrived` means nothing.

    `spec.sampling.max_tokens` is resolved and `spec.nice` is the one it has now. `age` is the time since it arrived,
    `ttft` from there to its first token.
    """

    spec: RequestSpec
    branches: tuple[Branch, ...]
    times: TimeSplit
    ttft: Nanoseconds | None = None
    preemptions: int = 0
    reused_tokens: int = 0
    page_ns: int = 0
    timeline: Timeline = ()

    @property
    def id(self) -> RequestId:
        return self.spec.id

    @property
    def age(self) -> Nanoseconds:
        return self.times.total

    @property
    def max_tokens(self) -> int:
        assert self.spec.sampling.max_tokens is not None, "max_tokens of a snapshot is resolved"
        return self.spec.sampling.max_tokens


def take(request: Request, now: Nanoseconds) -> Snapshot:
    arrived, first = request.spec.arrived, request.first_token
    return Snapshot(
        replace(request.spec, sampling=request.sampling, nice=request.nice),
        tuple(Branch(tuple(sequence.tokens), sequence.finish) for sequence in request.sequences),
        request.times(now),
        None if first is None else first - arrived,
        request.preemptions,
        request.reused,
        request.held.total(now),
        request.timeline,
    )


def validate_snapshot(snapshot: Snapshot) -> None:
    """Raise InvalidRequest unless it is of a request that is live."""
    live = [branch for branch in snapshot.branches if branch.finish is None]
    whole = len(snapshot.branches) == snapshot.spec.sampling.n and live
    if not whole or any(len(branch.tokens) >= snapshot.max_tokens for branch in live):
        raise InvalidRequest(f"the snapshot of request {snapshot.id} contradicts itself")


def revive(
    snapshot: Snapshot,
    number: int,
    first_id: SequenceId,
    arrived: Nanoseconds,
    now: Nanoseconds,
    account: Account,
    clock: WaitClock,
) -> Request:
    """The suspended request that the snapshot is of; what passed since then counts as `other` time."""
    deadline = snapshot.spec.deadline
    if deadline is not None:
        deadline += arrived - snapshot.spec.arrived
    spec = replace(snapshot.spec, arrived=arrived, ready=None, tokenise=0, deadline=deadline)
    request = Request(spec, number, snapshot.max_tokens, first_id, now, account, clock)
    for sequence, branch in zip(request.sequences, snapshot.branches, strict=True):
        sequence.tokens, sequence.finish = list(branch.tokens), branch.finish
    request.live = [sequence for sequence in request.sequences if sequence.finish is None]
    request.first_token = None if snapshot.ttft is None else arrived + snapshot.ttft
    request.preemptions, request.reused = snapshot.preemptions, snapshot.reused_tokens
    request.held = PageMeter(_offset=-snapshot.page_ns)
    request.begin_suspended(snapshot.times, snapshot.timeline, now)
    return request
