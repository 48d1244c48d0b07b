"""An executor over symbolic pages: it computes what a transformer would, with hashes in place of tensors.

A page slot holds the hash of the whole history up to its token, made from what the slot before it holds, as the K and
V of a deep layer are. So a sequence reads its own history through its page table or the test fails; and what it
samples is a function of what it read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmosd.errors import StepError
from llmosd.system.executor import nothing
from llmosd.system.kernel import Kernel
from llmosd.types import (
    FinishReason,
    PageCopy,
    Plan,
    RequestSpec,
    SequencePlan,
    SequenceResult,
    SequenceStart,
    StepResult,
)
from tests.system.symbolic_swap import SymbolicSwap

VOCABULARY = 12
STOP, POISON = 0, 99  # a token that ends a sequence, and one that no executor can digest
EMPTY = -1


def fold(before: int, token: int) -> int:
    return (before * 1_000_003 + token + 7) % (2**61 - 1)


def choose(state: int, choice: int) -> int:
    return fold(state, 31 * choice) % VOCABULARY


def expected_tokens(spec: RequestSpec, choice: int, max_tokens: int) -> list[int]:
    """What one choice of a request must generate, whatever else runs."""
    state, tokens = 0, list[int]()
    for token in spec.prompt:
        state = fold(state, token)
    while len(tokens) < max_tokens and (spec.sampling.ignore_eos or STOP not in tokens):
        tokens.append(choose(state, choice))
        state = fold(state, tokens[-1])
    return tokens


@dataclass
class Known:
    start: SequenceStart
    step: int
    tokens: list[int] = field(default_factory=list)


class SymbolicExecutor:
    """`breaks` names steps that fail the first time, after they have written to the pages."""

    def __init__(self, kernel: Kernel) -> None:
        self.table = memoryview(kernel.page_table)
        self.columns = kernel.columns
        self.page_tokens = kernel.limits.page_tokens
        self.budget = kernel.limits.token_budget
        self.swap_slots = kernel.limits.swap_slots
        self.pages = [[EMPTY] * self.page_tokens for _ in range(kernel.limits.pages)]
        self.known: dict[int, Known] = {}
        self.breaks: set[int] = set()
        self.interrupted = False  # the next step does not wait for a transfer
        self.disk()

    def disk(self, seed: int = 0, delay: int = 0, fault: float = 0.0) -> None:
        """Where pages are swapped to, before the first of them is."""
        self.swap = SymbolicSwap(self.pages, self.swap_slots, seed, delay, fault)

    def shrink(self, copies: Sequence[PageCopy], pages: int) -> None:
        """Pages move; whatever lies in other pages than the first so many is lost then."""
        on_their_way = self.swap.leaving | self.swap.entering
        for copy in copies:
            assert not {copy.source, copy.target} & on_their_way, "a page on its way is moved"
            self.pages[copy.target] = list(self.pages[copy.source])
        self.pages[pages:] = [[EMPTY] * self.page_tokens for _ in self.pages[pages:]]

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        assert plan.query_tokens <= self.budget
        self._meet(plan)
        meanwhile()
        self.swap.start(plan)
        leaving, entering = self.swap.leaving, self.swap.entering
        for copy in plan.copies:
            assert copy.source not in entering, "a page on its way in is copied"
            assert copy.target not in leaving | entering, "a page on its way is copied to"
            self.pages[copy.target] = list(self.pages[copy.source])
        written = [place for part in plan.sequences for place in self._write(part)]
        assert len(set(written)) == len(written), "two sequences write to one place"
        assert not {page for page, _ in written} & (leaving | entering), "a page on its way is written to"
        states = [self._states(part) for part in plan.sequences]
        if plan.step in self.breaks:
            self.breaks.remove(plan.step)
            raise StepError("broken on purpose")
        results = tuple(map(self._sample, plan.sequences, states))
        interrupted, self.interrupted = self.interrupted, False
        transfers = self.swap.finished(at_least_one=not plan.sequences and not interrupted)
        assert results or transfers or interrupted, "a step that does nothing"
        return StepResult(plan.step, results, 1000, 1000, transfers)

    def _meet(self, plan: Plan) -> None:
        for sequence in plan.ended:
            self.known.pop(sequence, None)
        for start in plan.started:
            known = self.known.setdefault(start.sequence, Known(start, plan.step, list(start.generated)))
            assert known.step == plan.step, "started twice"

    def _place(self, row: int, position: int) -> tuple[int, int]:
        page = self.table[row * self.columns + position // self.page_tokens]
        assert 0 <= page < len(self.pages), f"row {row} has no page for position {position}"
        return page, position % self.page_tokens

    def _write(self, part: SequencePlan) -> list[tuple[int, int]]:
        places = []
        for position, token in enumerate(part.tokens, part.past):
            before = 0
            if position:
                page, slot = self._place(part.row, position - 1)
                before = self.pages[page][slot]
            page, slot = self._place(part.row, position)
            self.pages[page][slot] = fold(before, token)
            places.append((page, slot))
        return places

    def _states(self, part: SequencePlan) -> list[int]:
        """What the pages hold after the last token of the history and after each guess."""
        known = self.known[part.sequence]
        history = [*known.start.prompt, *known.tokens]
        end = part.past + len(part.tokens) - part.drafts
        fed = [*history[:end], *part.tokens[len(part.tokens) - part.drafts :]]
        assert list(part.tokens) == fed[part.past :], "fed with something else than its history"
        assert part.sample == (end == len(history))
        assert part.sample or not part.drafts
        assert len(fed) < len(known.start.prompt) + known.start.sampling.max_tokens, "guesses beyond the end"
        states = [0]
        for position, token in enumerate(fed):
            page, slot = self._place(part.row, position)
            states.append(fold(states[-1], token))
            assert self.pages[page][slot] == states[-1], f"sequence {part.sequence} reads another history at {position}"
        return states[end:]

    def _sample(self, part: SequencePlan, states: list[int]) -> SequenceResult:
        if POISON in part.tokens:
            return SequenceResult(part.sequence, error="poison")
        if not part.sample:
            return SequenceResult(part.sequence)
        known = self.known[part.sequence]
        tokens, finish = list[int](), None
        guesses = [*part.tokens[len(part.tokens) - part.drafts :], None]
        for state, guess in zip(states, guesses, strict=True):
            tokens.append(choose(state, known.start.choice))
            known.tokens.append(tokens[-1])
            finish = self._finish(known)
            if finish or tokens[-1] != guess:
                break
        return SequenceResult(part.sequence, tuple(tokens), "".join(f"<{token}>" for token in tokens), finish=finish)

    def _finish(self, known: Known) -> FinishReason | None:
        sampling = known.start.sampling
        if known.tokens[-1] == STOP and not sampling.ignore_eos:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(known.tokens) == sampling.max_tokens else None
