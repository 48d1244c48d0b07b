"""What goes into a step of a request, and the pages that it holds for that: drawn, promised and given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmosd.system.accounts import Accounts
from llmosd.system.costs import StepWork
from llmosd.system.limits import Limits
from llmosd.system.pages import PageTable
from llmosd.system.request import NO_ROW, Request, Sequence
from llmosd.system.reuse import BorderKey, PrefixReuse
from llmosd.system.speculation import Speculation
from llmosd.types import Event, PageCopy, SequencePlan, SequenceStart, State


@dataclass(slots=True)
class Draft:
    """A plan being built: what the step feeds so far and how many tokens of the budget are left."""

    left: int
    work: StepWork = field(default_factory=StepWork)
    sequences: list[SequencePlan] = field(default_factory=list)
    fed: list[Sequence] = field(default_factory=list)  # whose they are
    copies: list[PageCopy] = field(default_factory=list)
    started: list[SequenceStart] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    computed: dict[BorderKey, Request] = field(default_factory=dict)  # whose prompt brings which pages
    awaited: int = 0  # pages that requests wait for, and that others may not take
    full: bool = False  # no token was left for who waits
    room: int = 0  # tokens of prompts that it has room for, 0 if there were none


class Feeding:
    """Whom it feeds and who runs is the scheduler's to say."""

    def __init__(self, limits: Limits, table: PageTable, reuse: PrefixReuse, accounts: Accounts) -> None:
        self.limits = limits
        self.table = table
        self.pool = table.pool
        self.reuse = reuse
        self.accounts = accounts

    def decode(self, sequence: Sequence, extend: bool, draft: Draft) -> None:
        """Feed the token that it sampled last, which is all that it has not in pages."""
        past, work = sequence.past, draft.work
        if extend:
            draft.copies += self._extend(sequence, past + 1)
        draft.sequences.append(SequencePlan(sequence.id, sequence.row, sequence.tokens[-1:], past, True))
        draft.fed.append(sequence)
        draft.left -= 1
        work.decodes += 1
        work.context += past

    def feed(self, request: Request, draft: Draft) -> None:
        """Put as much of the request into the step as the budget allows. Its pages are available or promised."""
        if not request.forked:
            self._go_on_from_cache(request.live[0], draft)
            if request.live[0].past == request.prompt_tokens - 1:
                self._fork(request)
        for sequence in request.to_feed():
            if request.forked and request.state is State.PREFILL:  # else its leader just did
                self._go_on_from_cache(sequence, draft)
            end = min(request.feed_end(sequence), sequence.past + draft.left)
            if end > sequence.past and not self._waits_for_prefix(sequence, draft):
                self._feed_sequence(sequence, end, draft)

    def _feed_sequence(self, sequence: Sequence, end: int, draft: Draft) -> None:
        past, row = sequence.past, sequence.row
        draft.copies += self._extend(sequence, end)
        if not sequence.started:
            draft.started.append(sequence.start())
            sequence.started = True
        tokens, sample = sequence.history(past, end), end == sequence.length
        draft.sequences.append(SequencePlan(sequence.id, row, tokens, past, sample))
        draft.work.add(end - past, past, sample)
        draft.fed.append(sequence)
        draft.left -= end - past
        if sequence.request.state is State.PREFILL and (key := self.reuse.computed(sequence)):
            draft.computed.setdefault(key, sequence.request)

    def _extend(self, sequence: Sequence, end: int) -> list[PageCopy]:
        """Draw the pages up to `end`, from the request's promise first."""
        request = sequence.request
        needed = self.table.needed(sequence.row, sequence.past, end)
        if needed == 0:
            return []
        self.claim(request, min(needed, request.reserved))
        copies = self.table.extend(sequence.row, sequence.past, end)
        self.count_pages(request)
        return copies

    def _fork(self, request: Request) -> None:
        leader, *others = request.live
        for sequence in others:
            self.table.fork(leader.row, sequence.row)
            sequence.past, sequence.node = leader.past, leader.node
        request.forked = True

    def add_guesses(self, draft: Draft, speculation: Speculation) -> None:
        """Feed guesses behind the decodes. They take places in pages that the decodes write to."""
        places = [place for place, sequence in enumerate(draft.fed) if sequence.request.state is State.DECODE]
        guesses = speculation.guesses([draft.fed[place] for place in places], self._room, draft.left)
        for place, guess in zip(places, guesses, strict=True):
            if guess:
                part = draft.sequences[place]
                draft.sequences[place] = replace(part, tokens=[*part.tokens, *guess], drafts=len(guess))
                draft.left -= len(guess)

    def _room(self, sequence: Sequence) -> int:
        """Guesses for which its pages have place and which, all right, do not take it beyond max_tokens."""
        places = self.table.pages(sequence.row) * self.limits.page_tokens - sequence.length
        return min(places, sequence.request.max_tokens - len(sequence.tokens) - 1)

    # ---- prefixes

    def _go_on_from_cache(self, sequence: Sequence, draft: Draft) -> None:
        """Skip what the prefix cache has by now; promised pages that are not needed are free for all."""
        if pages := self.reuse.advance(sequence):
            self.claim(sequence.request, pages)
            self.count_pages(sequence.request)
        node, common = self.reuse.partial(sequence)
        if node is not None and (self.pool.available or not self.pool.cache.is_idle(node.page)):
            self.pool.hold(node.page)  # before a page is drawn: it could be this one
            draft.copies += self._extend(sequence, sequence.past + 1)
            target = self.table.page(sequence.row, self.table.pages(sequence.row) - 1)
            draft.copies.append(self.reuse.take(sequence, node, common, target))

    def _waits_for_prefix(self, sequence: Sequence, draft: Draft) -> bool:
        """Whether another request computes in this step what it needs next. That one goes before it, or came first."""
        if sequence.request.state is not State.PREFILL:
            return False
        key = self.reuse.awaited(sequence)
        return key is not None and draft.computed.get(key, sequence.request) is not sequence.request

    # ---- pages

    def promise_rest(self, request: Request) -> None:
        """Promise it what it needs to its next token beside the pages that it holds: nobody else gets them."""
        self.count_pages(request)
        pages = request.demand(self.limits) - request.pages
        self.pool.reserve(pages)
        request.reserved += pages
        self.accounts.promise(request.account, pages)

    def claim(self, request: Request, pages: int) -> None:
        """Turn promised pages of the request into available ones, to be drawn by it at once or by anybody."""
        self.pool.unreserve(pages)
        request.reserved -= pages
        self.accounts.promise(request.account, -pages)

    def release(self, sequence: Sequence) -> None:
        self.reuse.leave(sequence)
        self.table.release(sequence.row)
        sequence.row, sequence.past, sequence.node = NO_ROW, 0, None
        self.count_pages(sequence.request)

    def count_pages(self, request: Request) -> None:
        rows = [sequence.row for sequence in request.live if sequence.row != NO_ROW]
        self.accounts.hold(request.account, request.held, self.table.distinct(rows))
