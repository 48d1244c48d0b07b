"""Who runs in the next step: admission, preemption, and one token budget for decodes and prefill chunks alike.

Every request is in one of two phases while it runs. In *prefill* it holds a promise of all the pages it needs to reach
its next token, made on admission and drawn chunk by chunk. In *decode* pages are drawn as it grows and, when none is
left, taken from a request in decode below it that has sampled a token since admission (the victim): it gives all its
pages up, goes back to its place in the queue, and computes them again later or has them swapped out and in.

Before that the policy may let the head of the queue *displace* requests in decode that it puts behind it, each of which
has sampled a token since admission, when slots or pages are short: they take their places in the queue again.

A request whose pages are read back holds its rows, those pages and its promise, and is not fed. Pages on their way out
are free when that is done; whoever needs them sits out until then, and nobody below it takes pages in the meantime.

No request is lost for want of pages, and the number of steps is bounded:

1. Transfers end, whether they succeed or not, and a step that feeds nothing waits for one of them, or for a command.
2. A request that holds a promise never waits for a page, and the budget leaves the first of them a token: decodes take
   one token for each slot they hold, it holds a slot itself, budget ≥ slots, and whatever the pace of the decodes asks
   for, a step takes at least one token of a prompt. So each of them gains its token, one after the other.
3. If none holds a promise and no page is on its way, the top-ranked running request advances: all others are its
   possible victims, and alone it fits the pool, for `submit` refuses what would not. It is never a victim itself,
   ranking below nobody.
4. If none runs, the head of the queue is admitted as soon as its own pages are out: alone it fits.
5. Each preemption, a displacement as well, is paid for by a token gained since admission: there are at most
   n·max_tokens of them for one request, and each costs a bounded recomputation, or one transfer of each page out and
   one in.
6. Who displaces is admitted in the same plan, or when the pages that are on their way out for it have left; so 1 to 4
   hold whatever order the policy makes of a step, and though that order may be another one in the next.
"""

from __future__ import annotations

from collections import deque
from math import ceil

from llmosd.system.accounts import Account, Accounts
from llmosd.system.costs import StepBudget
from llmosd.system.feeding import Draft, Feeding
from llmosd.system.limits import Limits
from llmosd.system.pages import PageTable
from llmosd.system.policy import Policy
from llmosd.system.prefix_cache import Node
from llmosd.system.quotas import QuotaQueue
from llmosd.system.request import Request, Sequence
from llmosd.system.reuse import PrefixReuse
from llmosd.system.speculation import Speculation
from llmosd.system.swapping import Swapping
from llmosd.system.waiting import WaitClock
from llmosd.types import (
    STANDING,
    Event,
    Nanoseconds,
    State,
    StateChanged,
    WaitReason,
)


class Scheduler:
    """Owns the running set; shares the queue (inside the policy) and the page table with the kernel."""

    def __init__(
        self,
        limits: Limits,
        policy: QuotaQueue,
        table: PageTable,
        reuse: PrefixReuse,
        accounts: Accounts,
        speculation: Speculation | None,
        swapping: Swapping,
        clock: WaitClock,
        budget: StepBudget,
    ) -> None:
        self.limits = limits
        self.budget = budget
        self.policy = policy
        self.table = table
        self.speculation = speculation
        self.pool = table.pool
        self.reuse = reuse
        self.accounts = accounts
        self.swapping = swapping
        self.clock = clock
        self.feeding = Feeding(limits, table, reuse, accounts)
        self.running: list[Request] = []  # in rank order
        self.preemptions = 0

    def build(self, now: Nanoseconds, admit: bool = True) -> Draft:
        """Decodes first, one token each; what is left of the budget goes to prefill in rank order, then to guesses.

        Beside decodes prefill and guesses have only what the step budget allows, so that the step does not take long.
        """
        draft = Draft(self.limits.token_budget)
        if self.policy.moves:
            self.running.sort(key=self.policy.rank)
        if admit and self.policy.preempts:
            self._displace(draft, now)
        self._plan_decodes(draft, now)
        self._plan_prefills(draft, now, admit)
        self._tell_why(draft, now, admit)
        if self.speculation is not None and draft.left:
            self.feeding.add_guesses(draft, self.speculation)
        return draft

    def _tell_why(self, draft: Draft, now: Nanoseconds, admit: bool) -> None:
        """What the head of the queue waits for until the next plan."""
        head = self.policy.head() if admit else None
        if not admit:
            reason = WaitReason.MODEL
        elif head is not None and not self._has_slots(head):
            reason = WaitReason.SLOTS
        else:
            reason = WaitReason.STEP if head is None or draft.full else WaitReason.PAGES
        self.clock.tell(reason, head.number if head else 0, now)

    def withdraw(self, request: Request) -> None:
        """Take a request out of the queue or the running set, and all it holds from it, at once."""
        if request.waiting:
            self.policy.remove(request)
        elif request.state not in STANDING:
            self.running.remove(request)
            self._vacate(request)
        self.swapping.forget(request)

    def suspend(self, request: Request, state: State, reason: str, now: Nanoseconds) -> list[Event]:
        """Take a request out of the queue or the running set; what it has stays in pages or the swap space."""
        events = list[Event]()
        if request.waiting:
            self.policy.remove(request)
        elif request.state not in STANDING:
            self.running.remove(request)
            if request.pages and not request.returning:
                events.append(self.swapping.evict(request, now))
            request.returning = False
            self._vacate(request)
        self._move(request, state, reason, events, now)
        return events

    def resume(self, request: Request, reason: str, now: Nanoseconds) -> list[Event]:
        """Give a suspended or paused request its place in the queue again."""
        events = list[Event]()
        state = State.SWAPPED if request.image else State.PREEMPTED if request.has_run else State.QUEUED
        self._move(request, state, reason, events, now)
        self.policy.add(request)
        return events

    def renice(self, request: Request, nice: int) -> None:
        """Change the nice value and with it the place, in the queue or among the running."""
        if request.waiting:
            self.policy.remove(request)
        request.nice = nice
        if request.waiting:
            self.policy.add(request)
        elif request.state not in STANDING:
            self.running.sort(key=self.policy.rank)

    def switch(self, policy: Policy, waiting: list[Request], now: Nanoseconds) -> None:
        """Another policy orders the queue and the running set."""
        self.policy.switch(policy, waiting, self.running, now)
        self.running.sort(key=self.policy.rank)

    def finish(self, sequence: Sequence) -> None:
        """A sequence is complete: its row and pages are free at once, whatever its siblings do."""
        self.feeding.release(sequence)
        sequence.request.live.remove(sequence)

    def settle(self, sequence: Sequence) -> None:
        """Its step is done: what it computed may serve others from now on."""
        self.reuse.settle(sequence)
        if len(sequence.request.live) > 1:  # a page of one may now be that of another
            self.feeding.count_pages(sequence.request)

    def release_promise(self, request: Request) -> None:
        """Every live sequence has its next token: what is left of the promise made on admission is free for all."""
        self.feeding.claim(request, request.reserved)

    def settle_swap(self, request: Request, now: Nanoseconds) -> list[Event]:
        """All transfers of its image are reported: it may run again, or needs some or all of its pages computed."""
        events, returning = self.swapping.reported(request, now), request.returning
        if returning:
            self._return(request, events, now)
        elif request.image is None and request.state is State.SWAPPED:
            self._move(request, State.PREEMPTED, "swap", events, now)
        return events

    # ---- decode

    def _plan_decodes(self, draft: Draft, now: Nanoseconds) -> None:
        """Feed every request in decode that has, or can take, the pages."""
        needed = self.table.needed
        for request in tuple(self.running):
            if request.state is not State.DECODE:
                continue
            pages = 0
            for sequence in request.live:
                pages += needed(sequence.row, sequence.past, sequence.past + 1)
            if not pages or self._make_room(request, pages - request.reserved, draft, now):
                for sequence in request.live:
                    self.feeding.decode(sequence, pages > 0, draft)

    def _make_room(self, request: Request, needed: int, draft: Draft, now: Nanoseconds) -> bool:
        """Make the pages of its next tokens available; False when it has to sit this step out, pages kept.

        Where its user's quota is short of them, only that user's requests are victims; nobody else's before there is
        room in the quota.
        """
        while needed > 0:
            over_quota = not request.account.has_room(needed)
            if not over_quota and needed <= self.pool.available - draft.awaited:
                break
            if not over_quota and needed <= self.pool.available + self.pool.leaving - draft.awaited:
                draft.awaited += needed
                return False
            victim = self._victim(below=request, of=request.account if over_quota else None)
            if victim is None:
                return False
            self._preempt(victim, "quota" if over_quota else "pages", draft, now)
        return True

    def _victim(self, *, below: Request | None, of: Account | None) -> Request | None:
        """A request in decode, of this user and below this running one in rank if they are given."""
        candidates = list[Request]()
        for request in reversed(self.running):
            if request is below:
                break
            if request.state is State.DECODE and request.gained and (of is None or request.account is of):
                candidates.append(request)
        return self.swapping.eviction.victim(candidates, self.policy.grade)

    # ---- displacement

    def _displace(self, draft: Draft, now: Nanoseconds) -> None:
        """Let the head in at the cost of requests in decode that the policy puts behind it, then the next head.

        Only as long as the step has tokens for its prompt: until then its victims may go on.
        """
        while (head := self.policy.head()) is not None:
            candidates = self._candidates(head)
            if not candidates or sum(map(_to_compute, self.running)) >= draft.left:
                return
            path = self._room_for(head, draft)
            if path is None:
                for victim in self._victims(head, candidates, draft):
                    self._preempt(victim, "policy", draft, now)
                if self.policy.head() is not head:  # a quota that has been eased lets another one go first
                    continue
                path = self._room_for(head, draft)
            if path is None:
                if self.pool.leaving:  # what is to be for the head is not to be taken meanwhile
                    draft.awaited += head.demand(self.limits)
                return
            self._admit(head, path, draft, now)

    def _candidates(self, head: Request) -> list[Request]:
        """Requests that may have to give way to the head, lowest rank first."""
        candidates = list[Request]()
        if head.image and head.image.under_way:
            return candidates
        for request in reversed(self.running):
            if not self.policy.displaces(head, request):
                break
            if request.state is State.DECODE and request.gained and not self.policy.protects(request):
                candidates.append(request)
        return candidates

    def _victims(self, head: Request, candidates: list[Request], draft: Draft) -> list[Request]:
        """Those of the candidates without whose rows and pages the head fits, as far as can be told; else none."""
        rows = len(head.live) - self.table.free_rows
        pages = head.demand(self.limits) + self._rows - (self.pool.available + self.pool.leaving - draft.awaited)
        victims = list[Request]()
        while rows > 0 or pages > 0:
            victim = self.swapping.eviction.victim(candidates, self.policy.grade)
            if victim is None:
                return []
            candidates.remove(victim)
            victims.append(victim)
            rows -= len(victim.live)
            pages -= len(victim.live) + victim.pages
        return victims

    def _preempt(self, request: Request, reason: str, draft: Draft, now: Nanoseconds) -> None:
        self.running.remove(request)
        draft.events.append(self.swapping.evict(request, now))
        self._vacate(request)
        self._move(request, State.SWAPPED if request.image else State.PREEMPTED, reason, draft.events, now)
        self.policy.add(request)
        request.preemptions += 1
        self.preemptions += 1

    def preempt_all(self, reason: str, now: Nanoseconds) -> list[Event]:
        """None may be promised its next token: each preemption is paid for by one."""
        assert all(request.gained for request in self.running), "preempted without having gained a token"
        draft = Draft(0)
        for request in tuple(self.running):
            self._preempt(request, reason, draft, now)
        return draft.events

    def preempt_overflow(self, now: Nanoseconds) -> list[Event]:
        """Where the pool has become too small for the pages in use: as few victims as it takes, if there are any."""
        draft = Draft(0)
        while self.pool.overflow and (victim := self._victim(below=None, of=None)):
            self._preempt(victim, "pages", draft, now)
        return draft.events

    # ---- admission and prefill

    def _plan_prefills(self, draft: Draft, now: Nanoseconds, admit: bool) -> None:
        """Walk requests in prefill and the head of the queue in rank order while budget is left.

        A share of it is kept for those that starve; they have that, and all that the others leave, at the end.
        """
        if self.policy.chunk is not None:
            draft.left = min(draft.left, self.policy.chunk)
        if len(draft.fed) == self.limits.slots:  # there is no prompt to compute, and no slot for another
            return
        starving = self._starving(draft, now, admit) if self.policy.share else []
        prefilling = deque(request for request in self.running if request.state is State.PREFILL)
        decoding, kept = bool(draft.sequences), 0
        if starving:
            draft.room = self._pace(draft, prefilling[0], None) if decoding else draft.left
            kept = min(ceil(self.policy.share * draft.room), sum(map(_to_compute, starving)))
            prefilling = deque(request for request in prefilling if request not in starving)
        draft.left -= kept
        while draft.left:
            head = self.policy.head() if admit else None
            path = self._room_for(head, draft) if head and self._goes_before(head, prefilling) else None
            request = head if path is not None else prefilling[0] if prefilling else None
            if request is None or (decoding and not starving and not self._pace(draft, request, path)):
                break
            draft.room = draft.room or draft.left
            if head and path is not None:
                self._admit(head, path, draft, now)
                if not head.returning:
                    self.feeding.feed(head, draft)
            else:
                self.feeding.feed(prefilling.popleft(), draft)
        draft.full = not draft.left
        draft.left += kept
        for request in starving:
            if draft.left:
                self.feeding.feed(request, draft)

    def _starving(self, draft: Draft, now: Nanoseconds, admit: bool) -> list[Request]:
        """Requests in prefill that starve, those of the queue that are entitled to run among them."""
        while admit and draft.left and (head := self.policy.head()) and self.policy.starving(head):
            path = self._room_for(head, draft)
            if path is None:
                break
            self._admit(head, path, draft, now)
        return [request for request in self.running if request.state is State.PREFILL and self.policy.starving(request)]

    def _pace(self, draft: Draft, request: Request, path: list[Node] | None) -> int:
        """Leave to a request, which begins with `path` if it is the head, only what keeps the pace of the decodes."""
        past = request.to_feed()[0].past if path is None else len(path) * self.limits.page_tokens
        whole = 0 if request.computed else request.prompt_tokens - past
        prefilling = sum(request.state is State.PREFILL for request in self.running)
        prompts = prefilling + min(self.policy.ready, self.table.free_rows)
        draft.left = min(draft.left, self.budget.prefill_tokens(draft.work, past, prompts, whole))
        return draft.left

    def _goes_before(self, head: Request, prefilling: deque[Request]) -> bool:
        return not prefilling or self.policy.rank(head) < self.policy.rank(prefilling[0])

    def _room_for(self, request: Request, draft: Draft) -> list[Node] | None:
        """The pages of the prefix cache it can begin with, None if it does not fit or is still being swapped out.

        It needs a slot for each live sequence, all other pages to its next token, and a spare one for each sequence
        that runs.

        With the spare pages who runs grows before who waits enters. Without them an overloaded pool thrashes: what is
        admitted takes the pages that the next tokens need, becomes the victim and computes everything again.
        """
        if not self._has_slots(request) or (request.image and request.image.under_way):
            return None
        spare, path = self._rows, self.reuse.path(request)
        if request.image:
            path = path[: self.swapping.full_pages(request)]
        demand = request.demand(self.limits) - len(path) + self.reuse.idle(path)
        return path if demand + spare <= self.pool.available - draft.awaited else None

    def _has_slots(self, request: Request) -> bool:
        """Whether there is one for each live sequence, within what the policy lets run beside others."""
        rows, cap = self._rows + len(request.live), self.policy.cap
        return rows <= self.limits.slots and not (cap and self.running and rows > cap)

    def _admit(self, request: Request, path: list[Node], draft: Draft, now: Nanoseconds) -> None:
        self.policy.remove(request)
        self.policy.admit(request)
        request.admitted_with = request.service
        for sequence in request.live:
            sequence.row, sequence.past, sequence.gained, sequence.node = self.table.take_row(), 0, 0, None
        if request.image:
            self.swapping.bring_in(request, path)
        else:
            request.forked = len(request.live) == 1
            self.reuse.adopt(request.live[0], path)
        self.accounts.enter(request.account)
        self.feeding.promise_rest(request)
        self.running.append(request)
        self.running.sort(key=self.policy.rank)
        if not request.image:
            self._move(request, State.PREFILL, "", draft.events, now)
        elif not request.returning:
            self._return(request, draft.events, now)

    def _return(self, request: Request, events: list[Event], now: Nanoseconds) -> None:
        """What it swapped out is in its pages again, as far as that went well."""
        state, whole = self.swapping.restore(request)
        self.feeding.claim(request, request.reserved)
        self.feeding.count_pages(request)
        if request.demand(self.limits) - request.pages > self.pool.available:  # the pool has shrunk meanwhile
            self.running.remove(request)
            self._vacate(request)
            self._move(request, State.PREEMPTED, "pages", events, now)
            self.policy.add(request)
            return
        self.feeding.promise_rest(request)
        self._move(request, state, "", events, now)
        if whole:
            events += self.swapping.eviction.restored(request, now)

    # ---- giving back

    def _vacate(self, request: Request) -> None:
        for sequence in request.live:
            self.feeding.release(sequence)
        self.feeding.claim(request, request.reserved)
        self.accounts.leave(request.account)
        self.policy.leave(request)

    def _move(self, request: Request, state: State, reason: str, events: list[Event], now: Nanoseconds) -> None:
        old = request.enter(state, now)
        events.append(StateChanged(request.id, old, state, now, reason))

    @property
    def _rows(self) -> int:
        """Sequences that run."""
        return self.limits.slots - self.table.free_rows

    # ---- invariants

    def check(self) -> None:
        """Between steps only."""
        self.policy.check()
        self.table.check()
        self.reuse.check()
        ranks = [self.policy.rank(request) for request in self.running]
        assert self.policy.moves or ranks == sorted(ranks), "the running set is out of order"
        assert self.pool.reserved == sum(request.reserved for request in self.running), "promises do not add up"
        rows = [sequence.row for request in self.running for sequence in request.live]
        assert len(set(rows)) == len(rows) == self._rows, "rows do not add up"
        for request in self.running:
            self._check_running(request)

    def _check_running(self, request: Request) -> None:
        assert request.live, f"{request.id} runs without a live sequence"
        pages = self.table.distinct([sequence.row for sequence in request.live])
        assert pages == request.pages, f"{request.id} holds {pages} pages, not {request.pages}"
        if request.returning:
            assert request.state is State.SWAPPED, f"{request.id} returns in state {request.state}"
            return
        assert request.state in (State.PREFILL, State.DECODE), f"{request.id} runs in state {request.state}"
        assert request.image is None, f"{request.id} runs while it is swapped out"
        if request.state is State.DECODE and request.gained:
            assert request.reserved == 0, f"{request.id} keeps a promise while in decode"
        for sequence in request.live:
            assert sequence.past < sequence.length, f"sequence {sequence.id} has nothing to feed"
            pages = self.table.pages(sequence.row)
            assert pages == self.limits.pages_for(sequence.past), f"sequence {sequence.id} holds {pages} pages"
        if request.forked and not request.gained:
            missing = self.table.needed_together([(s.row, s.past, s.length) for s in request.to_feed()])
            assert missing <= request.reserved, f"{request.id} is promised too few pages for its next token"


def _to_compute(request: Request) -> int:
    """Tokens that its live sequences have not in pages."""
    return sum(sequence.length - sequence.past for sequence in request.live)
