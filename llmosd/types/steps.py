"""plan → execute → commit: what one step does and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmosd.record import record
from llmosd.types.latency import Nanoseconds
from llmosd.types.requests import FinishReason, Sampling, SequenceId


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """First mention of a sequence to the executor: all it needs to sample and detokenise.

    `sampling.max_tokens` is resolved (never None). `choice` numbers the n alternatives of one request. A restored
    request's sequence has `generated` already: text and sampling go on behind it.
    """

    sequence: SequenceId
    choice: int
    prompt: Sequence[int]
    sampling: Sampling
    generated: Sequence[int] = ()


@record(frozen=True, slots=True)
class SequencePlan:
    """One sequence's part of a step: feed `tokens` at positions past … past+len−1, sample after the last if asked.

    `row` is the row of the kernel's page-table array that holds its pages; they cover past + len(tokens) positions.
    The last `drafts` of the tokens are guesses of what sampling will give: it is done after the token before them and
    goes on after each guess that was right.
    """

    sequence: SequenceId
    row: int
    tokens: Sequence[int]
    past: int
    sample: bool
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy-on-write: all layers' K and V of page `source` go to page `target` before the step runs."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class PageTransfer:
    """All layers' K and V of one page between the pool and one slot of the swap file; a slot holds a page."""

    page: int
    slot: int


@dataclass(frozen=True, slots=True)
class PoolSize:
    """The page pool of a resident model may use its first `pages` pages from now on; the memory of others is free.

    Before that `copies` are made, of pages beyond to pages inside.
    """

    model: str
    pages: int
    copies: tuple[PageCopy, ...] = ()


@record(frozen=True, slots=True)
class Plan:
    """Everything the executor does in one step, in order: forget `ended`, meet `started`, copy pages, run.

    Sequences, pages and rows are those of `model`; each model numbers its own. Before all else models are unloaded,
    pools change their size, and models are loaded, each with the size of its pool.

    Page-outs and page-ins are set off before the run, go on beside it and beside later ones, and are reported when
    they are done (`StepResult.transfers`). Until then neither page nor slot is used for anything else, but that a page
    on its way out may still be read. A plan without sequences waits for at least one transfer under way, if there is
    any, or until it is interrupted. Executing the same plan twice gives the same result: a failed step is retried once.
    """

    step: int
    sequences: tuple[SequencePlan, ...]
    copies: tuple[PageCopy, ...] = ()
    started: tuple[SequenceStart, ...] = ()
    ended: tuple[SequenceId, ...] = ()
    page_outs: tuple[PageTransfer, ...] = ()
    page_ins: tuple[PageTransfer, ...] = ()
    model: str = ""
    unloads: tuple[str, ...] = ()
    resizes: tuple[PoolSize, ...] = ()
    loads: tuple[PoolSize, ...] = ()
    query_tokens: int = field(init=False)  # of all sequences, guesses included
    drafts: int = field(init=False)  # of these, guesses

    def __post_init__(self) -> None:
        tokens = drafts = 0
        for part in self.sequences:
            tokens += len(part.tokens)
            drafts += part.drafts
        object.__setattr__(self, "query_tokens", tokens)
        object.__setattr__(self, "drafts", drafts)


@record(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token and of the likeliest at its place, from the raw model distribution.

    Whoever shows them looks up the tokens' texts: a step does not wait for that.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@record(frozen=True, slots=True)
class SequenceResult:
    """What one sequence got from a step. `text` is safe to send: whole UTF-8, no part of a stop string.

    One token where it was sampled, and one more for each guess that was right; all but the last are those guesses.
    """

    sequence: SequenceId
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TransferDone:
    """A page-out or page-in of this or an earlier step that has ended; each is reported once.

    After an error the slot holds nothing (a page-out) or the page holds garbage (a page-in).
    """

    transfer: PageTransfer
    inward: bool
    ns: Nanoseconds  # of work on it, waiting for others not included
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LoadDone:
    """A model of the plan is loaded, or could not be for this reason; a model that was unloaded has no error."""

    model: str
    ns: Nanoseconds  # of wall time
    error: str | None = None


@record(frozen=True, slots=True)
class StepResult:
    """Results by sequence, in the plan's order, and where the step's time went (nanoseconds of wall time)."""

    step: int
    sequences: tuple[SequenceResult, ...]
    run_ns: Nanoseconds = 0  # inside ONNX Runtime, without the way back: a wait for the interpreter lock is none of it
    execute_ns: Nanoseconds = 0  # whole of Executor.execute
    transfers: tuple[TransferDone, ...] = ()
    loads: tuple[LoadDone, ...] = ()  # one for each of the plan
    unloads: tuple[LoadDone, ...] = ()


@record(frozen=True, slots=True)
class StepStats:
    """One step as the engine saw it: for estimators, metrics and the bench (nanoseconds)."""

    step: int
    now: Nanoseconds  # when it was committed
    sequences: int
    prefill_tokens: int
    decode_tokens: int  # without guesses
    drafted: int  # tokens fed as guesses
    accepted: int  # of them right
    context_tokens: int  # sum of past lengths
    plan_ns: Nanoseconds
    execute_ns: Nanoseconds
    run_ns: Nanoseconds
    commit_ns: Nanoseconds
    model: str = ""
    between_ns: Nanoseconds = 0  # since the commit before, unless the engine was idle: commands, statistics, hand-over

    @property
    def total_ns(self) -> Nanoseconds:
        return self.between_ns + self.plan_ns + self.execute_ns + self.commit_ns
