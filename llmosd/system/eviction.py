"""What a request that gives its pages up costs, and which way back is taken: computing them again, or the swap space.

*Recompute* costs the prefill of all that was in the pages, but what other requests hold as well. *Swap* costs writing
each page and reading back those that no other request holds, and has to wait for the transfers that are under way. What
the prefix cache alone may still have when the request comes back is not counted on: pages are given up because others
need them. What was expected and what it came to are told in events.

What prefill costs is seen in every step, what transfers cost only where there are some. So swap is tried once in a
while although it seems dearer: when that costs a twentieth of all recomputation since it was taken last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from llmosd.system.costs import Costs
from llmosd.system.pager import Pager
from llmosd.system.pages import PageTable
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request, Sequence
from llmosd.types import Evicted, EvictionMode, Nanoseconds, Plan, Restored, SequenceId, SequencePlan, StepResult

NEIGHBOURS = 4  # in rank, of whom the cheapest gives its pages up
TRIAL = 20.0


@dataclass(frozen=True, slots=True)
class Price:
    """Of giving up all pages of a request; they come with how often it refers to each."""

    pages: Counter[int]
    recompute_s: float
    swap_s: float | None  # None where the swap space has no room

    def loss_s(self, mode: EvictionMode) -> float:
        if self.swap_s is None or mode == "recompute":
            return self.recompute_s
        return self.swap_s if mode == "swap" else min(self.swap_s, self.recompute_s)


@dataclass(slots=True)
class Loss:
    """What a request has lost by giving its pages up, and what getting it back has taken so far."""

    decision: Evicted
    past: dict[SequenceId, int]  # tokens that were in pages
    took: float = 0.0  # nanoseconds
    recomputed: int = 0  # tokens
    errors: list[str] = field(default_factory=list)


class Eviction:
    """Decides, and keeps the accounts of what came of it."""

    def __init__(self, mode: EvictionMode, costs: Costs, table: PageTable, pager: Pager) -> None:
        self.recomputed = 0  # tokens
        self.swapped = 0  # requests
        self._mode = mode
        self._costs = costs
        self._table = table
        self._pager = pager
        self._recomputed_s = 0.0  # expected, since swap was taken last
        self._losses: dict[Request, Loss] = {}

    @property
    def is_choice(self) -> bool:
        """Whether there is anything to choose, so that costs are worth learning."""
        return self._pager.space.total > 0 and self._mode == "auto"

    # ---- deciding

    def victim(self, candidates: list[Request], grade: Callable[[Request], Rank]) -> Request | None:
        """One of the candidates, who come lowest rank first.

        The greatest grade comes first, then rank; among some neighbours it is who loses least for each page it frees.
        """
        worst = max(map(grade, candidates), default=())
        neighbours = [request for request in candidates if grade(request) == worst][:NEIGHBOURS]
        return min(neighbours, key=self._loss_per_page) if len(neighbours) > 1 else next(iter(neighbours), None)

    def _loss_per_page(self, request: Request) -> float:
        price, references = self._price(request), self._table.pool.references
        free = sum(references(page) == count for page, count in price.pages.items())
        return price.loss_s(self._mode) / free if free else inf

    def decide(self, request: Request, now: Nanoseconds) -> Evicted:
        """Which way a request that holds pages takes; to be asked before they are given up."""
        price, past = self._price(request), {sequence.id: sequence.past for sequence in request.live}
        recompute_s, swap_s = price.recompute_s, price.swap_s
        backlog_s = self._costs.transfer.seconds(*self._pager.under_way)
        swap = swap_s is not None and self._prefers_swap(swap_s + backlog_s, recompute_s)
        way: Literal["recompute", "swap"] = "swap" if swap else "recompute"
        tokens = sum(past.values())
        decision = Evicted(request.id, way, len(price.pages), tokens, recompute_s, swap_s, backlog_s, now)
        self._losses[request] = Loss(decision, past)
        self.swapped += swap
        return decision

    def _prefers_swap(self, swap_s: float, recompute_s: float) -> bool:
        if self._mode != "auto":
            return self._mode == "swap"
        self._recomputed_s += recompute_s
        if swap_s < recompute_s or swap_s < self._recomputed_s / TRIAL:
            self._recomputed_s = 0.0
            return True
        return False

    def _price(self, request: Request) -> Price:
        pages = Counter(page for sequence in request.live for page in self._table.contents(sequence.row))
        kept, fits = self._kept(request.live[0], pages), len(pages) <= self._pager.space.free
        swap_s = self._costs.transfer.seconds(len(pages), len(pages) - kept) if fits else None
        return Price(pages, self._recompute_s(request, kept), swap_s)

    def _recompute_s(self, request: Request, kept: int) -> float:
        """A fork's later sequences go on from the prompt."""
        seconds, start = 0.0, min(kept * self._table.page_tokens, request.live[0].past)
        for sequence in request.live:
            seconds += self._costs.prefill.seconds(max(0, sequence.past - start), start)
            start = max(start, request.prompt_tokens - 1)
        return seconds

    def _kept(self, sequence: Sequence, pages: Counter[int]) -> int:
        """Its first pages that other requests hold as well: they will be there when it comes back."""
        kept, references = 0, self._table.pool.references
        for page in self._table.contents(sequence.row):
            if references(page) <= pages[page]:
                break
            kept += 1
        return kept

    # ---- what came of it

    def observe(self, result: StepResult) -> None:
        """Let the costs learn from the transfers that ended with a step."""
        if self.is_choice:
            for done in result.transfers:
                self._costs.transfer.observe(done)

    def fed(self, sequence: Sequence, part: SequencePlan, plan: Plan, result: StepResult) -> None:
        """A sequence was fed: as far as it has been there before, its share of the step is part of the loss."""
        loss = self._losses.get(sequence.request)
        if loss is None or (again := min(part.past + len(part.tokens), loss.past[sequence.id]) - part.past) <= 0:
            return
        loss.took += result.execute_ns * again / plan.query_tokens
        loss.recomputed += again
        self.recomputed += again

    def transferred(self, request: Request, took: Nanoseconds, errors: Iterable[str]) -> None:
        """All page-outs or page-ins of its image have been reported."""
        loss = self._losses[request]
        loss.took += took
        loss.errors += errors

    def restored(self, request: Request, now: Nanoseconds) -> list[Restored]:
        """A request is where it was when it gave its pages up, if it did."""
        loss = self._losses.pop(request, None)
        if loss is None:
            return []
        decision = loss.decision
        expected = decision.swap_s if decision.way == "swap" else decision.recompute_s
        assert expected is not None
        error = loss.errors[0] if loss.errors else None
        return [Restored(request.id, decision.way, expected, loss.took / 1e9, loss.recomputed, now, error)]

    def forget(self, request: Request) -> None:
        """It has ended."""
        self._losses.pop(request, None)
