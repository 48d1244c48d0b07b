"""A request: what a process is to an operating system. Its states, its sequences and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmosd.system.accounts import Account, PageMeter
from llmosd.system.limits import Limits
from llmosd.system.lookup import Lookup
from llmosd.system.prefix_cache import Node
from llmosd.system.swap import Image
from llmosd.system.timeline import DOWN, extended
from llmosd.system.waiting import Wait, WaitClock
from llmosd.types import (
    ENDED,
    FinishReason,
    Nanoseconds,
    QueuedTime,
    RequestSpec,
    RequestView,
    Sampling,
    SequenceId,
    SequenceStart,
    State,
    Timeline,
    TimeSplit,
)

_S = State
_ANYWHERE = frozenset({_S.SUSPENDED, _S.CANCELLED, _S.FAILED})
TRANSITIONS: dict[State, frozenset[State]] = {
    _S.QUEUED: _ANYWHERE | {_S.PREFILL},
    _S.PREFILL: _ANYWHERE | {_S.DECODE, _S.PREEMPTED, _S.SWAPPED, _S.PAUSED},
    _S.DECODE: _ANYWHERE | {_S.FINISHED, _S.PREEMPTED, _S.SWAPPED, _S.PAUSED},
    _S.PREEMPTED: _ANYWHERE | {_S.PREFILL, _S.PAUSED},
    _S.SWAPPED: _ANYWHERE | {_S.PREFILL, _S.DECODE, _S.PREEMPTED, _S.PAUSED},
    _S.SUSPENDED: (_ANYWHERE - {_S.SUSPENDED}) | {_S.QUEUED, _S.PREEMPTED, _S.SWAPPED, _S.PREFILL, _S.DECODE},
    _S.PAUSED: _ANYWHERE | {_S.PREEMPTED, _S.SWAPPED},
    _S.FINISHED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
}
WAITING = frozenset({_S.QUEUED, _S.PREEMPTED, _S.SWAPPED})
NO_ROW = -1


class IllegalTransition(Exception):
    """A defect of the kernel: a request was moved along an edge that the state table does not have."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One of the n continuations of a request. Row, sampler and slot belong to it.

    Its history is the request's prompt followed by `tokens`; the first `past` tokens of it are in pages. `gained`
    counts the tokens sampled since the request was last admitted.
    """

    id: SequenceId
    request: Request
    choice: int
    tokens: list[int] = field(default_factory=list)
    row: int = NO_ROW
    past: int = 0
    gained: int = 0
    node: Node | None = None  # its last full page in the prefix cache
    started: bool = False  # the executor knows it
    lookup: Lookup | None = None  # once its tokens are worth guessing
    finish: FinishReason | None = None

    @property
    def length(self) -> int:
        return self.request.prompt_tokens + len(self.tokens)

    def history(self, start: int, end: int) -> list[int]:
        """Tokens start … end−1 of prompt and generated tokens, without touching the rest."""
        prompt = self.request.prompt_tokens
        if start >= prompt:
            return self.tokens[start - prompt : max(0, end - prompt)]
        return [*self.request.spec.prompt[start:end], *self.tokens[max(0, start - prompt) : max(0, end - prompt)]]

    def start(self) -> SequenceStart:
        return SequenceStart(self.id, self.choice, self.request.spec.prompt, self.request.sampling, tuple(self.tokens))


class Request:
    """A request from submit to its end; only the kernel and its scheduler change it.

    n > 1: the first live sequence (the leader) feeds the prompt up to its last token, then the others fork from it
    and each feeds the rest itself. The state is that of the least advanced live sequence: `decode` means that every
    one has sampled a token since admission.
    """

    def __init__(
        self,
        spec: RequestSpec,
        number: int,
        max_tokens: int,
        first_id: SequenceId,
        now: Nanoseconds,
        account: Account,
        clock: WaitClock | None = None,
    ) -> None:
        """`clock` is the queue's; without it time in the queue has no reason."""
        self.spec = spec
        self.account = account
        self.number = number  # arrival order
        self.sampling: Sampling = replace(spec.sampling, max_tokens=max_tokens)
        self.max_tokens = max_tokens
        self.nice = spec.nice
        self.prompt_tokens = len(spec.prompt)
        self.sequences = [Sequence(first_id + choice, self, choice) for choice in range(spec.sampling.n)]
        self.live = list(self.sequences)
        self.forked = False
        self.reserved = 0  # pages promised and not drawn yet; only until each sequence has gained a token
        self.held = PageMeter()
        self.image: Image | None = None  # what is swapped out
        self.returning = False  # swapped, and its pages are being read back
        self.reused = 0  # tokens found in the prefix cache, on every admission
        self.preemptions = 0
        self.submitted = now
        self.batch = spec.service_class == "batch"
        self.foreseen: Nanoseconds = 0  # service that it will probably need, prompt and output
        self.computed = 0  # tokens of the prompt that have been computed or skipped, at most so far
        self.service: Nanoseconds = 0  # what was computed for it for the first time, by price
        self.admitted_with: Nanoseconds = 0  # service that it had when it was last admitted
        self.paid = 0  # tokens taken from its user's bucket
        self.first_token: Nanoseconds | None = None
        self.error: str | None = None
        self.state = State.QUEUED
        ready = now if spec.ready is None else spec.ready
        self.timeline = extended((), State.QUEUED, ready - spec.arrived)
        self.wait = Wait(clock or WaitClock(), number)
        self.wait.add(QueuedTime(step=now - ready))
        self.wait.start(now)
        self._since = now
        self._spent = dict.fromkeys(State, 0)
        self._spent[State.QUEUED] = now - ready
        self._tokenise = spec.tokenise
        self._rest = ready - spec.arrived - spec.tokenise

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def size(self) -> int:
        """Tokens that it has and may generate."""
        return self.prompt_tokens + len(self.sequences) * self.max_tokens

    @property
    def salt(self) -> str:
        return self.spec.cache_salt

    @property
    def pages(self) -> int:
        """Pages it refers to, each counted once."""
        return self.held.pages

    def need(self, limits: Limits) -> int:
        """Pages that all its sequences hold at their longest."""
        return limits.need(self.prompt_tokens, self.max_tokens, len(self.sequences))

    def demand(self, limits: Limits) -> int:
        """Pages for all that is to be computed plus one token for each live sequence."""
        shared = limits.shared_pages(self.prompt_tokens) if len(self.live) > 1 else 0
        return shared + sum(limits.pages_for(sequence.length + 1) - shared for sequence in self.live)

    @property
    def has_run(self) -> bool:
        started = any(sequence.started or sequence.tokens for sequence in self.sequences)
        return started or self._spent[State.PREFILL] > 0

    @property
    def waiting(self) -> bool:
        return self.state in WAITING and not self.returning

    @property
    def gain(self) -> Nanoseconds:
        """Service since it was last admitted."""
        return self.service - self.admitted_with

    @property
    def gained(self) -> bool:
        """Whether each live sequence has a token more than on admission; until then its pages are promised to it."""
        return all(sequence.gained for sequence in self.live)

    def begin_suspended(self, times: TimeSplit, timeline: Timeline, now: Nanoseconds) -> None:
        """Instead of queued: it has spent these times in another kernel, and since then no daemon ran."""
        self.wait.stop(now)
        self.wait.add(times.queued_by)
        self.state = State.SUSPENDED
        known = {
            _S.QUEUED: times.queued,
            _S.PREFILL: times.prefill,
            _S.DECODE: times.decode,
            _S.PREEMPTED: times.preempted,
            _S.SWAPPED: times.swapped,
            _S.SUSPENDED: times.suspended,
            _S.PAUSED: times.paused,
        }
        self._spent.update(known)
        self._tokenise = times.tokenise
        age = now - self.spec.arrived
        self._rest = age - sum(known.values()) - times.tokenise
        self.timeline = extended(extended(timeline, DOWN, times.total), State.SUSPENDED, age)

    def enter(self, state: State, now: Nanoseconds) -> State:
        """Move to `state` and account the time spent in the old one, which is returned."""
        old = self.state
        if state not in TRANSITIONS[old]:
            raise IllegalTransition(f"request {self.id}: {old} → {state}")
        self._spent[old] += now - self._since
        self._since, self.state = now, state
        self.timeline = extended(self.timeline, state, now - self.spec.arrived)
        if old is State.QUEUED:
            self.wait.stop(now)
        if state is State.QUEUED:
            self.wait.start(now)
        elif state is State.DECODE or state in ENDED:
            self.wait.leave()
        return old

    def to_feed(self) -> list[Sequence]:
        """Sequences whose turn it is: in prefill those that have not reached their next token yet."""
        if self.state is State.DECODE:
            return self.live
        return [sequence for sequence in self.live if not sequence.gained] if self.forked else self.live[:1]

    def feed_end(self, sequence: Sequence) -> int:
        """How far `sequence` feeds its history: all of it, or up to the prompt's last token while it leads a fork."""
        return sequence.length if self.forked else self.prompt_tokens - 1

    def times(self, now: Nanoseconds) -> TimeSplit:
        spent = self._spent
        if self.state not in ENDED:
            spent = {**spent, self.state: spent[self.state] + now - self._since}
        swapped, suspended, paused = spent[_S.SWAPPED], spent[_S.SUSPENDED], spent[_S.PAUSED]
        return TimeSplit(
            queued=spent[_S.QUEUED],
            prefill=spent[_S.PREFILL],
            decode=spent[_S.DECODE],
            preempted=spent[_S.PREEMPTED],
            other=swapped + suspended + paused + self._tokenise + self._rest,
            queued_by=self.wait.times(now),
            tokenise=self._tokenise,
            swapped=swapped,
            suspended=suspended,
            paused=paused,
        )

    def view(self, now: Nanoseconds, position: int | None, waits_for: str = "") -> RequestView:
        return RequestView(
            id=self.id,
            user=self.spec.user,
            model=self.spec.model,
            state=self.state,
            nice=self.nice,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(len(sequence.tokens) for sequence in self.sequences),
            cached_tokens=self._cached_tokens(),
            max_tokens=self.max_tokens,
            n=len(self.sequences),
            pages=self.pages,
            position=position,
            preemptions=self.preemptions,
            created_at=self.spec.created_at,
            arrived=self.spec.arrived,
            first_token=self.first_token,
            times=self.times(now),
            finish=",".join(s.finish for s in self.sequences if s.finish) or None,
            reused_tokens=self.reused,
            page_ns=self.held.total(now),
            waits_for=waits_for,
            swapped_pages=len(self.image.distinct) if self.image else 0,
            error=self.error,
            label=self.spec.label,
            session=self.spec.session or self.id,
            service_class=self.spec.service_class,
            timeline=self.timeline,
        )

    def _cached_tokens(self) -> int:
        """Prompt tokens in pages: the leader's until the fork, then those of the least advanced sequence."""
        followed = self.live if self.forked else self.live[:1]
        return min((min(sequence.past, self.prompt_tokens) for sequence in followed), default=0)
