"""The kernel: request table, admission, plan → execute → commit, accounting. No I/O, no clock, no randomness.

One thread calls it, between steps; whatever changes something is told the time, which never runs backwards.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from llmosd.errors import InvalidRequest, NotFound
from llmosd.system.accounts import Accounts
from llmosd.system.admission import Admission, resolve_max_tokens, validate, validate_deadline, validate_nice
from llmosd.system.checks import check_accounts, check_requests, validate_result
from llmosd.system.costs import Costs
from llmosd.system.deadlines import Deadlines, Timeout
from llmosd.system.eviction import Eviction
from llmosd.system.limits import Limits
from llmosd.system.memory import look
from llmosd.system.pager import Pager
from llmosd.system.pages import PagePool, PageTable
from llmosd.system.policy import Policy, named
from llmosd.system.prefix_cache import PrefixCache
from llmosd.system.quotas import QuotaQueue
from llmosd.system.request import Request, Sequence
from llmosd.system.reuse import PrefixReuse
from llmosd.system.scheduler import Scheduler
from llmosd.system.snapshot import KeptPages, Snapshot, revive, take, validate_snapshot
from llmosd.system.speculation import Speculation
from llmosd.system.swap import SwapSpace
from llmosd.system.swapping import Swapping
from llmosd.system.transplant import Transplants
from llmosd.system.turns import Urgency
from llmosd.system.waiting import WaitClock
from llmosd.types import (
    ENDED,
    STANDING,
    UNLIMITED,
    Accepted,
    Ended,
    Event,
    EvictionMode,
    KernelStats,
    Nanoseconds,
    Output,
    PageCopy,
    Plan,
    PolicyChanged,
    Quotas,
    RequestId,
    RequestSpec,
    RequestView,
    SequenceId,
    SequencePlan,
    SequenceResult,
    State,
    StateChanged,
    StepResult,
    WaitReason,
)

__all__ = ["Kernel", "Limits"]


class Kernel:
    """Every accepted request ends finished unless cancelled or failed by an error of its own; never for memory."""

    def __init__(
        self,
        limits: Limits,
        policy: Policy,
        speculation: Speculation | None = None,
        prefixes: bytes | None = None,
        model: str = "",
        quotas: Quotas = UNLIMITED,
        eviction: EvictionMode = "auto",
        costs: Costs | None = None,
        swap: SwapSpace | None = None,
    ) -> None:
        """`prefixes` turns the prefix cache on: what K and V depend on beside the tokens, and a secret.

        `eviction` and `costs` say which way requests without pages come back, where there is swap space; `swap` is that
        of `limits`, where it is less than its own.
        """
        self.model = model
        self.limits = limits
        self._accounts = Accounts(quotas, limits.pages)
        self.policy = QuotaQueue(policy, self._accounts, limits)
        self._planned: tuple[Nanoseconds, int] = (0, 0)  # when the step in flight was, and its room for prompts
        self._admission = Admission(limits, self.policy, self._accounts, quotas)
        self._deadlines = Deadlines()
        pool = PagePool(limits.pages, PrefixCache(limits.page_tokens, prefixes or b""))
        self._table = PageTable(pool, limits.slots, limits.columns, limits.page_tokens)
        self._reuse = PrefixReuse(self._table, remember=prefixes is not None)
        self._speculation = speculation
        self._pager = Pager(swap or SwapSpace(limits.swap_slots), self._table)
        self._costs = costs = costs or Costs()
        self._lengths = costs.lengths
        self._eviction = Eviction(eviction, costs, self._table, self._pager)
        self._transplants = Transplants(pool, limits.page_tokens, costs, remember=prefixes is not None)
        swapping = Swapping(limits, self._table, self._reuse, self._pager, self._eviction)
        self._clock = WaitClock()
        self._scheduler = Scheduler(
            limits,
            self.policy,
            self._table,
            self._reuse,
            self._accounts,
            speculation,
            swapping,
            self._clock,
            costs.budget,
        )
        self._requests: dict[RequestId, Request] = {}  # live ones only
        self._sequences: dict[SequenceId, Sequence] = {}  # of live requests
        self._in_flight: Plan | None = None
        self._events: list[Event] = []  # of planning, to go out with the commit
        self._gone: list[SequenceId] = []  # ended, and the executor does not know yet
        self._now: Nanoseconds = 0
        self._steps = 0
        self._next_sequence: SequenceId = 0
        self._accepted = 0
        self._ended = dict.fromkeys(ENDED, 0)
        self._prompt_tokens = 0
        self._generated_tokens = 0

    # ---- page table, for the executor to wrap once

    @property
    def page_table(self) -> array[int]:
        """Flat rows × columns page numbers, written only between a commit and the next execution."""
        return self._table.entries

    @property
    def rows(self) -> int:
        return self._table.rows

    @property
    def columns(self) -> int:
        return self._table.columns

    # ---- commands

    def submit(self, spec: RequestSpec, now: Nanoseconds) -> list[Event]:
        """Accept a request into the queue.

        Raises InvalidRequest, ContextTooLong (it cannot fit the context or, alone, the pool or its user's quota),
        DeadlineExceeded, QueueFull or RateLimited, the last two with the time after which to ask again.
        """
        self._advance(now)
        if spec.id in self._requests:
            raise InvalidRequest(f"request {spec.id} exists already", param="id")
        if not spec.arrived <= (now if spec.ready is None else spec.ready) <= now:
            raise InvalidRequest("the request arrives in the future", param="arrived")
        validate(spec, self.limits)
        max_tokens = resolve_max_tokens(spec, self.limits, self._accounts.most_pages(spec.user))
        validate_deadline(spec, now)
        if self.idle:
            self._admission.departures.busy_since(now)
        size = len(spec.prompt) + spec.sampling.n * max_tokens
        paid = self._admission.admit(spec, size, self._table.free_rows, now)
        account = self._accounts.open(spec.user)
        request = Request(spec, self._accepted, max_tokens, self._next_sequence, now, account, self._clock)
        request.paid = paid
        self._enter(request)
        if timeout := self.limits.queue_timeout:
            self._deadlines.add(now + timeout, "queue", request)
        self.policy.add(request)
        return [Accepted(self._view(request))]

    def restore(self, snapshot: Snapshot, arrived: Nanoseconds, now: Nanoseconds) -> list[Event]:
        """Take up a request of an earlier kernel, suspended; `arrived` is when it came, on this kernel's clock.

        The queue's limit does not concern it: it was accepted. Raises InvalidRequest or ContextTooLong where this
        kernel's limits could not let it end.
        """
        self._advance(now)
        if snapshot.id in self._requests:
            raise InvalidRequest(f"request {snapshot.id} exists already", param="id")
        validate_snapshot(snapshot)
        validate(snapshot.spec, self.limits)
        user = snapshot.spec.user
        resolve_max_tokens(snapshot.spec, self.limits, self._accounts.most_pages(user))
        account = self._accounts.open(user)
        request = revive(snapshot, self._accepted, self._next_sequence, arrived, now, account, self._clock)
        self._enter(request)
        return [Accepted(self._view(request), restored=True)]

    def expire(self, now: Nanoseconds) -> list[Event]:
        """Fail those whose deadline has passed, or the time that they may wait in the queue."""
        self._advance(now)
        return [event for request, kind in self._deadlines.due(now) for event in self._time_out(request, kind)]

    def _time_out(self, request: Request, kind: Timeout) -> list[Event]:
        waited = (self._now - request.spec.arrived) / 1e9
        reason = "its deadline passed" if kind == "deadline" else "it was not admitted in time"
        *moved, ended = self._stop(request.id, State.FAILED, f"{reason}, {waited:.3f} s after it came", self._now)
        assert isinstance(ended, Ended)
        retry_after_s = self._admission.retry_after_s(self._now)
        return [*moved, replace(ended, timeout=kind, retry_after_s=retry_after_s)]

    @property
    def next_deadline(self) -> Nanoseconds | None:
        """When `expire` has something to do."""
        return self._deadlines.next

    def cancel(self, id: RequestId, reason: str, now: Nanoseconds) -> list[Event]:
        """End a request now; raises NotFound when it is unknown or has ended."""
        return self._stop(id, State.CANCELLED, reason, now)

    def fail(self, id: RequestId, message: str, now: Nanoseconds) -> list[Event]:
        """End a request because the engine ends; raises NotFound when it is unknown or has ended."""
        *moved, ended = self._stop(id, State.FAILED, message, now)
        assert isinstance(ended, Ended)
        return [*moved, replace(ended, interrupted=True)]

    def renice(self, id: RequestId, nice: int, now: Nanoseconds) -> RequestView:
        """Change its nice value, effective with the next plan; raises NotFound or InvalidRequest (out of range)."""
        self._advance(now)
        request = self._find(id)
        validate_nice(nice)
        self._scheduler.renice(request, nice)
        return self._view(request)

    def set_policy(self, name: str, now: Nanoseconds) -> list[Event]:
        """Let another policy order what waits and runs, from the next plan on; raises InvalidRequest, naming all."""
        self._advance(now)
        policy, old = named(name, self.policy.rules), self.policy.name
        if name == old:
            return []
        waiting = [request for request in self._requests.values() if request.waiting]
        self._scheduler.switch(policy, waiting, now)
        return [PolicyChanged(self.model, old, name, "a person", now)]

    def suspend(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        """Let a request neither run nor wait until it is resumed, as SIGSTOP does; a suspended one stays so.

        Its pages are idle: the prefix cache keeps them until others need them. Where that is cheaper than to compute
        them again they are swapped out first. Raises NotFound.
        """
        self._advance(now)
        request = self._find(id)
        events = list[Event]()
        if request.state is not State.SUSPENDED:
            events += self._scheduler.suspend(request, State.SUSPENDED, "a person", now)
        return self._view(request), events

    def resume(self, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
        """Give a suspended request its place in the queue again, as SIGCONT does; others are left alone.

        Raises NotFound.
        """
        self._advance(now)
        request = self._find(id)
        events = list[Event]()
        if request.state is State.SUSPENDED:
            events += self._scheduler.resume(request, "a person", now)
        return self._view(request), events

    def pause(self, id: RequestId, now: Nanoseconds) -> list[Event]:
        """Let a request that has begun stand still as a suspended one does, until what it said has been read.

        One that has not begun, or is suspended, is left alone. Raises NotFound.
        """
        self._advance(now)
        request = self._find(id)
        if request.state in STANDING or request.state is State.QUEUED:
            return []
        return self._scheduler.suspend(request, State.PAUSED, "its client reads too slowly", now)

    def unpause(self, id: RequestId, now: Nanoseconds) -> list[Event]:
        """Give a paused request its place in the queue again. Raises NotFound."""
        self._advance(now)
        request = self._find(id)
        return self._scheduler.resume(request, "its client reads", now) if request.state is State.PAUSED else []

    def snapshot(self, id: RequestId, now: Nanoseconds) -> Snapshot:
        """All that another kernel needs to go on with a suspended request. Raises NotFound."""
        self._advance(now)
        request = self._find(id)
        assert request.state is State.SUSPENDED, f"{id} moves on while it is taken down"
        return take(request, now)

    def kept(self, id: RequestId) -> tuple[KeptPages, tuple[int, ...]]:
        """What is worth keeping of a suspended request's K and V, and the pages where it is now. Raises NotFound."""
        return self._transplants.held(self._find(id))

    def plant(self, id: RequestId, kept: KeptPages) -> list[tuple[int, int]]:
        """(number in `kept`, page) of K and V to be written before the next plan: a restored request finds them."""
        return self._transplants.plant(self._find(id), kept)

    # ---- the pool's size

    @property
    def pool(self) -> PagePool:
        return self._table.pool

    @property
    def floor(self) -> int:
        """Pages that the most demanding request that runs or waits could need, alone; 0 if there is none."""
        live = (request for request in self._requests.values() if request.state not in STANDING)
        return max((request.need(self.limits) for request in live), default=0)

    def resize(self, pages: int) -> tuple[PageCopy, ...]:
        """Let the pool use its first `pages` pages, at least `floor`; it may keep some others for a while.

        Pages beyond move to free ones: the copies are to be made before the next step.
        """
        assert pages >= self.floor or not self._scheduler.running, f"a request needs {self.floor} pages, not {pages}"
        if not pages:
            self._clock.tell(WaitReason.MODEL, 0, self._now)
        return self._table.resize(pages)

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def promised(self) -> int:
        """Running requests that have not gained a token since they were admitted."""
        return sum(not request.gained for request in self._scheduler.running)

    @property
    def transferring(self) -> bool:
        """Whether pages are on their way to or from the swap space, or about to be."""
        return not self._pager.idle

    def evacuate(self, now: Nanoseconds) -> list[Event]:
        """Preempt all that runs, so that no request holds a page; none may be `promised` its next token.

        Pages on their way out are still in use until nothing is `transferring`.
        """
        self._advance(now)
        self._clock.tell(WaitReason.MODEL, 0, now)
        return list(self._scheduler.preempt_all("unload", now))

    def squeeze(self, now: Nanoseconds) -> list[Event]:
        """Preempt as few as it takes for all pages in use to fit the pool; who is `promised` a token is left alone."""
        self._advance(now)
        return self._scheduler.preempt_overflow(now)

    # ---- plan → execute → commit

    def plan(self, now: Nanoseconds, admit: bool = True) -> Plan | None:
        """The next step, None when nothing is to be done. To be committed before anything is planned or stopped.

        Without `admit` nothing that waits is taken up: whoever wants the model's memory waits for what runs to end.
        Sequences that have ended are named in the next plan there is. A plan without sequences waits for transfers.
        """
        self._advance(now)
        if self.idle or not (admit or self._scheduler.running or self.transferring):
            self._clock.tell(WaitReason.STEP if admit else WaitReason.MODEL, 0, now)
            return None
        draft = self._scheduler.build(now, admit)
        assert draft.sequences or self.transferring, "requests wait or run but none can be fed"
        self._events += draft.events
        self._events += [PolicyChanged(self.model, *change, now) for change in self.policy.take_changes()]
        page_outs, page_ins = self._pager.take()
        plan = Plan(
            self._steps,
            tuple(draft.sequences),
            tuple(draft.copies),
            tuple(draft.started),
            tuple(self._gone),
            page_outs,
            page_ins,
            self.model,
        )
        self._in_flight, self._planned = plan, (now, draft.room)
        self._steps += 1
        self._gone.clear()
        return plan

    def commit(self, plan: Plan, result: StepResult, now: Nanoseconds) -> list[Event]:
        """Take in what came of the plan in flight; an `error` in it fails that request alone.

        Raises ValueError, with nothing changed, when the result is not one of this plan: a defect of the executor.
        """
        if plan is not self._in_flight:
            raise ValueError(f"step {plan.step} is not the step in flight")
        validate_result(plan, result)
        if not all(self._pager.knows(done) for done in result.transfers):
            raise ValueError(f"step {plan.step} reports a transfer that is not under way")
        self._in_flight = None
        self._advance(now)
        self._table.pool.unhold()
        if self._speculation is not None:
            self._speculation.observe(plan, result)
        self._costs.prefill.observe(plan, result)
        self._eviction.observe(result)
        began, room = self._planned
        if plan.sequences:
            self.policy.observe(now - began, room, self._table.pool.pressure)
        events, self._events = self._events, []
        for part, outcome in zip(plan.sequences, result.sequences, strict=True):
            sequence = self._sequences.get(part.sequence)
            if sequence is not None:  # else its request has just failed by an error of a sibling
                self._eviction.fed(sequence, part, plan, result)
                self._take(sequence, part, outcome, events)
        for done in result.transfers:
            if image := self._pager.report(done):
                events += self._scheduler.settle_swap(self._requests[image.owner], now)
        return events

    # ---- inspection

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs and no page is on its way; some may stand still."""
        return not self._scheduler.running and not len(self.policy) and not self.transferring

    def __contains__(self, id: RequestId) -> bool:
        """Whether it is a live request."""
        return id in self._requests

    @property
    def urgency(self) -> Urgency | None:
        """Of whatever goes first of what runs or waits; None for pages on their way."""
        firsts = [*self._scheduler.running[:1], self.policy.head()]
        return min((self.policy.urgency(request) for request in firsts if request), default=None)

    def view(self, id: RequestId) -> RequestView:
        """A live request as of the last step or command; raises NotFound."""
        return self._view(self._find(id))

    def views(self) -> list[RequestView]:
        """All live requests in rank order, as of the last step or command."""
        views, waiting = [], 0
        for request in sorted(self._requests.values(), key=self.policy.rank):
            waiting += request.waiting
            views.append(self._view_at(request, waiting if request.waiting else None))
        return views

    def stats(self, requests: bool) -> KernelStats:
        """Gauges and counters in O(running); with `requests` also all views, and users."""
        running, pool = self._scheduler.running, self._table.pool
        return KernelStats(
            slots=self.limits.slots,
            running=len(running),
            waiting=len(self.policy),
            suspended=len(self._requests) - len(running) - len(self.policy),
            prefilling=sum(request.state is State.PREFILL for request in running),
            pages_total=pool.total,
            pages_used=pool.used,
            pages_shared=pool.shared,
            page_tokens=self.limits.page_tokens,
            accepted=self._accepted,
            finished=self._ended[State.FINISHED],
            cancelled=self._ended[State.CANCELLED],
            failed=self._ended[State.FAILED],
            preemptions=self._scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            drafted_tokens=self._speculation.drafted if self._speculation else 0,
            accepted_tokens=self._speculation.accepted if self._speculation else 0,
            policy=self.policy.name,
            pages_cached=pool.idle,
            reused_tokens=self._reuse.hits,
            swap_slots=self._pager.space.total,
            swap_slots_used=self._pager.space.used,
            swap_outs=self._pager.outs,
            swap_ins=self._pager.ins,
            swap_failures=self._pager.failures,
            swapped=self._eviction.swapped,
            recomputed_tokens=self._eviction.recomputed,
            requests=tuple(self.views()) if requests else (),
            parked=self.policy.parked,
            pages_reserved=pool.reserved,
            users=self._accounts.usage() if requests else (),
            pools=(look(self.model, self._table, self._reuse, self._pager, self._requests.values()),)
            if requests
            else (),
            model=self.model,
        )

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds; between steps only."""
        assert self._in_flight is None, "check() with a plan in flight"
        self._scheduler.check()
        requests, running = self._requests.values(), self._scheduler.running
        check_accounts(self._accounts, requests, running)
        check_requests(requests, self._now)
        self._pager.check([request.image for request in requests if request.image])
        waiting = sum(request.waiting for request in requests)
        assert waiting == len(self.policy), "queue and states differ"
        standing = sum(request.state in STANDING for request in requests)
        assert waiting + standing + len(running) == len(requests), "a live request is nowhere"
        assert self._accepted == len(requests) + sum(self._ended.values()), "requests were lost"
        sequences = {sequence.id for request in requests for sequence in request.sequences}
        assert sequences == self._sequences.keys(), "sequences and requests differ"

    # ---- the life of a request

    def _take(self, sequence: Sequence, part: SequencePlan, outcome: SequenceResult, events: list[Event]) -> None:
        """One sequence's outcome: pages it filled, tokens it gained, or its error."""
        request = sequence.request
        if outcome.error is not None:
            request.error = outcome.error
            self._end(request, State.FAILED, outcome.error, events)
            return
        if not sequence.gained and request.state is State.PREFILL:
            self._prompt_tokens += len(part.tokens)
            request.account.prefilled += len(part.tokens)
        self._charge(request, part, outcome)
        sequence.past += len(part.tokens) - part.drafts + max(0, len(outcome.tokens) - 1)  # K and V of right guesses
        self._grow(sequence, outcome, events)
        if (request.state is State.PREFILL or request.reserved) and request.gained:
            self._scheduler.release_promise(request)
            if request.state is State.PREFILL:
                self._move(request, State.DECODE, "", events)
                events += self._eviction.restored(request, self._now)
        if not request.live:
            self._end(request, State.FINISHED, "", events)

    def _charge(self, request: Request, part: SequencePlan, outcome: SequenceResult) -> None:
        """Prompt tokens computed for the first time, whichever of its sequences did, and tokens sampled."""
        end = min(part.past + len(part.tokens) - part.drafts, request.prompt_tokens)
        prompt = max(0, end - max(part.past, request.computed))
        request.computed = max(request.computed, end)
        request.service += self.policy.rules.prices.cost(prompt, len(outcome.tokens))
        self.policy.charge(request, prompt, len(outcome.tokens))

    def _grow(self, sequence: Sequence, outcome: SequenceResult, events: list[Event]) -> None:
        request = sequence.request
        sequence.tokens += outcome.tokens
        sequence.gained += len(outcome.tokens)
        self._generated_tokens += len(outcome.tokens)
        request.account.generated += len(outcome.tokens)
        if outcome.tokens and request.first_token is None:
            request.first_token = self._now
        if outcome.tokens or outcome.text or outcome.finish is not None:
            events.append(
                Output(
                    request.id,
                    sequence.choice,
                    outcome.tokens,
                    outcome.text,
                    self._now,
                    outcome.logprobs,
                    outcome.finish,
                )
            )
        self._scheduler.settle(sequence)
        if outcome.finish is not None:
            sequence.finish = outcome.finish
            self._lengths.observe(request.spec.user, len(sequence.tokens))
            self._gone.append(sequence.id)
            self._scheduler.finish(sequence)

    def _stop(self, id: RequestId, state: State, reason: str, now: Nanoseconds) -> list[Event]:
        if self._in_flight is not None:
            raise ValueError("a request cannot be stopped while its step may be running")
        self._advance(now)
        request, events = self._find(id), list[Event]()
        request.error = reason if state is State.FAILED else None
        self._end(request, state, reason, events)
        return events

    def _end(self, request: Request, state: State, reason: str, events: list[Event]) -> None:
        """The one way out of the table: everything the request holds is free at once."""
        self._scheduler.withdraw(request)
        self.policy.forget(request)
        self._gone += [sequence.id for sequence in request.live if sequence.started]
        self._move(request, state, reason, events)
        self._ended[state] += 1
        del self._requests[request.id]
        for sequence in request.sequences:
            del self._sequences[sequence.id]
        self._accounts.close(request.account)
        self._admission.ended(request, self._now)
        events.append(Ended(request.view(self._now, None), self._now))

    def _move(self, request: Request, state: State, reason: str, events: list[Event]) -> None:
        old = request.enter(state, self._now)
        events.append(StateChanged(request.id, old, state, self._now, reason))

    # ---- small things

    def _enter(self, request: Request) -> None:
        self._accepted += 1
        self._next_sequence += len(request.sequences)
        output = len(request.sequences) * self._lengths.tokens(request.spec.user, request.max_tokens)
        request.foreseen = self.policy.rules.prices.cost(request.prompt_tokens, output)
        self._requests[request.id] = request
        self._sequences.update((sequence.id, sequence) for sequence in request.sequences)
        if request.spec.deadline is not None:
            self._deadlines.add(request.spec.deadline, "deadline", request)

    def _find(self, id: RequestId) -> Request:
        try:
            return self._requests[id]
        except KeyError:
            raise NotFound(f"no live request {id}", param="id") from None

    def _view(self, request: Request) -> RequestView:
        return self._view_at(request, self.policy.position(request) if request.waiting else None)

    def _view_at(self, request: Request, position: int | None) -> RequestView:
        return request.view(self._now, position, self._waits_for(request) if request.waiting else "")

    def _waits_for(self, request: Request) -> str:
        return self.policy.waits_for(request) or self._clock.reason_of(request.number)

    def _advance(self, now: Nanoseconds) -> None:
        if now < self._now:
            raise ValueError(f"time runs backwards: {now} after {self._now}")
        self._now = self._accounts.now = now
        self.policy.advance(now)
