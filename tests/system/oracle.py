"""What must be true of every run of the kernel, derived from its events alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from llmosd.system.timeline import MOST
from llmosd.types import (
    ENDED,
    STANDING,
    UNLIMITED,
    Accepted,
    Ended,
    Event,
    Evicted,
    FinishReason,
    Output,
    Quotas,
    RequestSpec,
    RequestView,
    Restored,
    State,
    StateChanged,
    SwapFailed,
)
from tests.system.symbolic import expected_tokens

RUNNING = {State.PREFILL, State.DECODE}
WAITING = {State.QUEUED, State.PREEMPTED, State.SWAPPED}


@dataclass
class Life:
    """One request as its events tell it."""

    spec: RequestSpec
    number: int
    nice: int
    max_tokens: int
    submitted: int
    state: State = State.QUEUED
    since: int = 0
    spent: Counter[State] = field(default_factory=Counter)
    gained: int = 0  # tokens since admission
    preemptions: int = 0
    suspensions: int = 0
    evicted: Evicted | None = None
    swap_failures: int = 0
    swap_failures_before: int = 0  # the last decision
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finishes: dict[int, FinishReason] = field(default_factory=dict)
    final: RequestView | None = None


class Oracle:
    """Follows the events; raises AssertionError as soon as one breaks a promise."""

    def __init__(self, policy: str, quotas: Quotas = UNLIMITED) -> None:
        self.policy = policy
        self.quotas = quotas
        self.lives: dict[str, Life] = {}
        self.queue: set[str] = set()  # of those swapped out, by the kernel's views
        self.steps = 0

    @property
    def live(self) -> list[str]:
        return [id for id, life in self.lives.items() if life.final is None]

    @property
    def runnable(self) -> list[str]:
        return [id for id in self.live if self.lives[id].state not in STANDING]

    @property
    def ordered(self) -> bool:
        """Whether the policy's ranks are those of `rank`, for good."""
        return self.policy in ("fcfs", "priority", "sjf", "edf")

    def rank(self, life: Life) -> tuple[int, int, int]:
        """Class, what the policy goes by (nobody waits long enough to starve), arrival."""
        batch, key = life.spec.service_class == "batch", 0
        if self.policy == "priority":
            key = life.nice
        elif self.policy == "edf":
            key = 1 << 63 if life.spec.deadline is None else life.spec.deadline
        elif self.policy == "sjf":
            key = len(life.spec.prompt) + 2 * life.spec.sampling.n * life.max_tokens
        return (batch, 0 if batch else key, life.number)

    def _displaces(self, other: Life, victim: Life) -> bool:
        """Whether one that waits may take slot or pages of one that runs."""
        classes = [life.spec.service_class for life in (other, victim)]
        if "batch" in classes:
            return classes == ["interactive", "batch"]
        return other.nice < victim.nice if self.policy == "priority" else self.policy in ("fair", "mlfq", "dynamic")

    def waits(self, life: Life) -> bool:
        return life.state in (State.QUEUED, State.PREEMPTED) or (
            life.state is State.SWAPPED and life.spec.id in self.queue
        )

    def runs(self, life: Life) -> bool:
        return life.state in RUNNING or (life.state is State.SWAPPED and life.spec.id not in self.queue)

    def submitted(self, spec: RequestSpec, events: list[Event], now: int) -> None:
        [event] = events
        assert isinstance(event, Accepted)
        view = event.request
        assert (view.id, view.state, view.pages, view.completion_tokens) == (spec.id, State.QUEUED, 0, 0)
        life = Life(spec, len(self.lives), spec.nice, view.max_tokens, now, since=now)
        assert spec.id not in self.lives
        self.lives[spec.id] = life
        ahead = [other for other in self.lives.values() if self.waits(other)]
        before = sum(self.rank(other) < self.rank(life) for other in ahead)
        assert view.position == 1 + before or (not self.ordered and view.position)

    def restarted(self, shift: int) -> None:
        """A new kernel takes the live requests over, in their order; its clock is the old one plus `shift`."""
        self.lives = {id: self.lives[id] for id in self.live}
        self.steps = 0
        for number, life in enumerate(self.lives.values()):
            life.number = number
            life.spec = replace(life.spec, arrived=life.spec.arrived + shift)
            life.submitted += shift
            life.since += shift

    def restored(self, id: str, events: list[Event]) -> None:
        [event] = events
        assert isinstance(event, Accepted)
        assert event.restored
        life, view = self.lives[id], event.request
        assert (view.id, view.state, view.nice, view.pages) == (id, State.SUSPENDED, life.nice, 0)
        assert (view.max_tokens, view.preemptions) == (life.max_tokens, life.preemptions)
        assert view.completion_tokens == sum(map(len, life.tokens.values()))

    def follow(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case StateChanged():
                    self._moved(event)
                case Output():
                    self._output(event)
                case Ended():
                    self._ended(event)
                case Evicted():
                    self._evicted(event)
                case Restored():
                    self._restored(event)
                case SwapFailed():
                    assert event.pages > 0
                    assert event.error
                    self.lives[event.id].swap_failures += 1
                case Accepted():
                    raise AssertionError("accepted twice")

    def _moved(self, event: StateChanged) -> None:
        life = self.lives[event.id]
        assert life.final is None
        assert event.old is life.state
        if event.is_preemption:
            running = [other for other in self.lives.values() if other.state in RUNNING]
            if event.reason == "policy":
                waiting = [other for other in self.lives.values() if other.state in WAITING]
                assert any(self._displaces(other, life) for other in waiting), "it gave way to nobody"
            elif event.reason != "unload" and self.ordered:  # then all of them lose their pages
                assert min(running, key=self.rank) is not life, "the top-ranked is the victim"
            assert life.gained > 0, "preempted without having gained a token"
            life.preemptions += 1
        life.suspensions += event.new in STANDING
        if event.new is State.PREFILL and event.old is not State.SWAPPED:
            self._check_order(life)
        if event.new is State.PREFILL or event.old is State.SWAPPED:
            life.gained = 0
        life.spent[event.old] += event.now - life.since
        life.state, life.since = event.new, event.now

    def running(self, user: str) -> int:
        return sum(life.spec.user == user and self.runs(life) for life in self.lives.values())

    def _check_order(self, admitted: Life) -> None:
        """Of one user's requests none is overtaken; of others only those that their quota may keep from running."""
        quota = self.quotas.of(admitted.spec.user)
        assert not quota.running or self.running(admitted.spec.user) < quota.running, "too many run of one user"
        for other in self.lives.values() if self.ordered else ():
            if self.waits(other) and self.rank(other) < self.rank(admitted):
                assert other.spec.user != admitted.spec.user, "a request of the same user was overtaken"
                assert self._may_be_over_quota(other.spec.user), "the head of the queue was overtaken"

    def _may_be_over_quota(self, user: str) -> bool:
        """Pages are not in the events: whoever has a quota of them and runs something may have too few."""
        quota, running = self.quotas.of(user), self.running(user)
        return quota.running == running > 0 or (running > 0 and (quota.pages > 0 or quota.share < 1))

    def _evicted(self, event: Evicted) -> None:
        life = self.lives[event.id]
        assert life.state in RUNNING
        assert event.pages > 0
        assert event.tokens >= 0
        assert event.way == "recompute" or event.swap_s is not None
        life.evicted, life.swap_failures_before = event, life.swap_failures

    def _restored(self, event: Restored) -> None:
        life = self.lives[event.id]
        evicted, life.evicted = life.evicted, None
        assert evicted is not None, "restored without having been evicted"
        assert event.way == evicted.way
        assert event.expected_s == (evicted.swap_s if event.way == "swap" else evicted.recompute_s)
        assert event.recomputed_tokens <= evicted.tokens
        if event.way == "swap":
            assert event.took_s > 0
            assert (event.error is None) == (life.swap_failures == life.swap_failures_before)
            assert event.error or not event.recomputed_tokens

    def _output(self, event: Output) -> None:
        life = self.lives[event.id]
        assert life.final is None
        assert life.state in RUNNING
        assert event.choice not in life.finishes, "output after the end"
        life.tokens[event.choice] += event.tokens
        life.gained += len(event.tokens)
        if event.finish is not None:
            life.finishes[event.choice] = event.finish

    def _ended(self, event: Ended) -> None:
        view = event.request
        life = self.lives[view.id]
        assert life.final is None, "ended twice"
        assert view.state is life.state
        assert view.state in ENDED
        life.final = view
        self._check_times(life, event.now)
        self._check_tokens(life)
        assert view.preemptions == life.preemptions <= view.n * view.max_tokens
        assert (view.pages, view.position) == (0, None)

    def _check_times(self, life: Life, now: int) -> None:
        times = life.final.times
        assert times.total == now - life.spec.arrived, "the parts do not sum to the total"
        assert times.other == times.tokenise + times.swapped + times.suspended + times.paused + times.rest
        assert times.tokenise == life.spec.tokenise
        assert times.queued == times.queued_by.total
        parts = (times.queued, times.prefill, times.decode, times.preempted, times.swapped, times.paused)
        states = (State.QUEUED, State.PREFILL, State.DECODE, State.PREEMPTED, State.SWAPPED, State.PAUSED)
        assert parts == tuple(life.spent[state] for state in states)
        down = times.rest - (life.submitted - life.spec.arrived)
        assert times.suspended + down == life.spent[State.SUSPENDED]
        self._check_timeline(life.final)

    def _check_timeline(self, view: RequestView) -> None:
        """As long as it has every change, it says the same as the sums."""
        names, begins = zip(*view.timeline, strict=True)
        assert list(begins) == sorted(begins) and len(names) <= MOST
        assert (names[0], names[-1], begins[-1]) == ("queued", view.state, view.times.total)
        if "several" not in names:
            spent = Counter[str]()
            for name, begin, end in zip(names, begins, begins[1:], strict=False):
                spent[name] += end - begin
            assert spent["down"] + begins[0] == view.times.rest + view.times.tokenise
            for state in (*RUNNING, State.QUEUED, State.PREEMPTED, State.SWAPPED, *STANDING):
                assert spent[state] == getattr(view.times, state), f"the timeline lost time in {state}"

    def _check_tokens(self, life: Life) -> None:
        view = life.final
        assert view.completion_tokens == sum(map(len, life.tokens.values()))
        for choice in range(view.n):
            expected = expected_tokens(life.spec, choice, life.max_tokens)
            got = life.tokens[choice]
            whole = choice in life.finishes
            assert got == (expected if whole else expected[: len(got)]), "tokens of another history"
            assert whole or view.state is not State.FINISHED

    def step_bound(self, page_tokens: int) -> int:
        """Every step feeds a token or ends a transfer.

        One admission of a request feeds its whole length at most, and each page goes out once and comes in once when
        the request is preempted or suspended.
        """
        return sum(self._most_steps(life, page_tokens) for life in self.lives.values())

    def _most_steps(self, life: Life, page_tokens: int) -> int:
        interruptions, length = life.preemptions + life.suspensions, len(life.spec.prompt) + life.max_tokens
        pages = -(-length // page_tokens)
        return life.spec.sampling.n * ((1 + interruptions) * length + 2 * interruptions * pages)
