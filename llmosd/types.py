"""Plain data that crosses borders: what is asked, what is planned, what came of it.

Times inside the daemon are integer nanoseconds of one monotonic clock (`Nanoseconds`), so that the parts of a
request's latency sum to its total exactly. Wall-clock times are float Unix seconds and named `*_at`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from llmosd.record import record

Nanoseconds = int
RequestId = str
SequenceId = int

WeightFormat = Literal["file", "float32"]
"""Weights as they are in the model's file, mostly 4 and 8 bits, or all of them expanded."""

KvFormat = Literal["float16", "float32", "int8"]
"""What a page keeps of K and V. int8 has one float32 scale for each token and KV head."""

KvChoice = KvFormat | Literal["auto"]
EvictionMode = Literal["auto", "recompute", "swap"]
"""How requests that gave their pages up get them back: whatever is cheaper, or always the same way (if it can be)."""

NICE_MIN, NICE_MAX = -20, 19


class State(StrEnum):
    """Where a request is in its life. `system/request.py` holds the table of legal transitions."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    SWAPPED = "swapped"
    SUSPENDED = "suspended"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})


class FinishReason(StrEnum):
    """Why a sequence stopped, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when a sequence ends. Ranges are checked by the API before it gets here.

    `max_tokens` None means "as many as fit"; the kernel resolves it at submit and the plan carries the result.
    `logprobs` None is off; k ≥ 0 gives the chosen token's log probability and those of the k likeliest.
    `top_k` 0 and `min_p` 0.0 are off. Temperature 0 is greedy.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """What a caller submits. `arrived` is when the front end received it, before tokenisation."""

    id: RequestId
    model: str
    prompt: Sequence[int]
    sampling: Sampling
    user: str = ""
    nice: int = 0
    arrived: Nanoseconds = 0
    created_at: float = 0.0
    label: str = ""  # short control-character-free text for a monitor; empty unless the user asked for it
    cache_salt: str = ""  # requests share prefixes with those of the same salt only


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user's running requests may hold at once: how many they are, pages, share of the pool.

    0 requests or 0 pages is no limit. Of `pages` and `share` (above 0, at most 1) the tighter one counts.
    """

    running: int = 0
    pages: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """A quota for everybody, and one of their own for some users. Whoever names no user is the user ""."""

    default: Quota = Quota()
    users: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, user: str) -> Quota:
        return self.users.get(user, self.default)


UNLIMITED = Quotas()


# ---------------------------------------------------------------- plan → execute → commit


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
    """The page pool of a resident model may use its first `pages` pages from now on; the memory of others is free."""

    model: str
    pages: int


@record(frozen=True, slots=True)
class Plan:
    """Everything the executor does in one step, in order: forget `ended`, meet `started`, copy pages, run.

    Sequences, pages and rows are those of `model`; each model numbers its own. Before all else models are unloaded,
    pools change their size, and models are loaded, each with the size of its pool.

    Page-outs and page-ins are set off before the run, go on beside it and beside later ones, and are reported when
    they are done (`StepResult.transfers`). Until then neither page nor slot is used for anything else, but that a page
    on its way out may still be read. A plan without sequences waits for at least one transfer under way, if there is
    any. Executing the same plan twice gives the same result (a failed step is retried once).
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

    @property
    def query_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)

    @property
    def drafts(self) -> int:
        return sum(s.drafts for s in self.sequences)


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


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where a request's time went, in nanoseconds; the parts sum to `total` exactly.

    `other` is everything outside the kernel's states: tokenisation before submit, suspension.
    """

    queued: Nanoseconds = 0
    prefill: Nanoseconds = 0
    decode: Nanoseconds = 0
    preempted: Nanoseconds = 0
    other: Nanoseconds = 0
    swapped: Nanoseconds = 0

    @property
    def total(self) -> Nanoseconds:
        return self.queued + self.prefill + self.decode + self.preempted + self.swapped + self.other


@dataclass(frozen=True, slots=True)
class RequestView:
    """One row of the process table: a consistent copy of a request at one moment."""

    id: RequestId
    user: str
    model: str
    state: State
    nice: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens already in pages (progress of prefill)
    max_tokens: int  # resolved, per choice
    n: int
    pages: int
    position: int | None  # place in the queue from 1, None when running or ended
    preemptions: int
    created_at: float
    arrived: Nanoseconds
    first_token: Nanoseconds | None
    times: TimeSplit
    finish: str | None = None  # finish reason(s) when ended: "stop", "length", joined by "," for n > 1
    error: str | None = None
    label: str = ""
    reused_tokens: int = 0  # found in the prefix cache, on every admission
    page_ns: int = 0  # integral of the pages it held over time, page·nanoseconds
    waits_for: str = ""  # what keeps it from running, in words, where that is not its place in the queue
    swapped_pages: int = 0  # in the swap space or on the way there or back


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request entered the table; it is stored before the client is answered.

    A restored one was accepted by an earlier daemon, and enters suspended.
    """

    request: RequestView
    restored: bool = False


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A request moved along the state table (including into an ended state)."""

    id: RequestId
    old: State
    new: State
    now: Nanoseconds
    reason: str = ""

    @property
    def is_preemption(self) -> bool:
        """Whether it lost its pages; one that is resumed, or whose swapped pages are lost, did so before."""
        return self.new in (State.PREEMPTED, State.SWAPPED) and self.old in (State.PREFILL, State.DECODE)


@record(frozen=True, slots=True)
class Output:
    """New text or tokens of one choice, or its end. Exactly one Output per choice carries `finish`."""

    id: RequestId
    choice: int
    tokens: tuple[int, ...]
    text: str
    now: Nanoseconds
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A request left the table: finished, cancelled or failed. `request` is its final view.

    `interrupted`: it failed because the engine stopped or died, not by an error of its own.
    """

    request: RequestView
    now: Nanoseconds
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Evicted:
    """A request gave its pages up, to others or because it was suspended: what its way back was expected to cost."""

    id: RequestId
    way: Literal["recompute", "swap"]
    pages: int
    tokens: int  # whose K and V they hold
    recompute_s: float
    swap_s: float | None  # None where the swap space had no room
    backlog_s: float  # what swapping would have had to wait for
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class Restored:
    """An evicted request is where it was: what the way it took has cost, beside what was expected of it.

    `took_s` is work on transfers and the recomputed tokens' share of their steps.
    """

    id: RequestId
    way: Literal["recompute", "swap"]
    expected_s: float
    took_s: float
    recomputed_tokens: int
    now: Nanoseconds
    error: str | None = None  # of a transfer: what was lost has been computed again


@dataclass(frozen=True, slots=True)
class SwapFailed:
    """Pages of a request could not be written or read back; it computes again what was in them."""

    id: RequestId
    inward: bool
    pages: int
    error: str  # the first
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model is in memory, with a page pool of so many pages."""

    model: str
    pages: int
    ns: Nanoseconds  # that it took
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A model could not be loaded; requests that waited for it have failed."""

    model: str
    error: str
    now: Nanoseconds


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model is out of memory: it had been idle for long, or another needed the room."""

    model: str
    reason: Literal["idle", "room"]
    ns: Nanoseconds
    now: Nanoseconds


Event = Accepted | StateChanged | Output | Ended | Evicted | Restored | SwapFailed | Loaded | LoadFailed | Unloaded


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


@dataclass(frozen=True, slots=True)
class UserUsage:
    """What a user holds now and has used since the start. `user` None: all those whose names are not kept, together.

    A page that several requests share counts for each of them whole.
    """

    user: str | None
    live: int = 0  # requests that wait, run or are suspended
    running: int = 0
    pages: int = 0  # held by its running requests
    page_ns: int = 0
    prefilled_tokens: int = 0  # computed, recomputation included
    reused_tokens: int = 0  # found in the prefix cache instead
    generated_tokens: int = 0


class PageState(StrEnum):
    """What a page is used for, as one letter of a map."""

    USED = "u"
    SHARED = "s"  # more than one sequence refers to it
    CACHED = "c"  # idle: kept for its contents until its memory is needed
    LEAVING = "o"  # only a page-out, or a page-in that nobody wants any more, uses it
    ARRIVING = "i"  # being read back
    FREE = "."
    GONE = "-"  # the pool has become smaller


@dataclass(frozen=True, slots=True)
class PoolView:
    """One model's page pool, and swap space, at one moment.

    Without `beyond`, used + leaving + cached + free pages are the total. Waste is in places for tokens: `unfilled` ones
    after the last token, and `duplicate` ones that hold what another page in use holds too (None without a prefix
    cache: nobody compares), pages that arrive left out. Promised pages are the third part of it.
    """

    model: str
    page_tokens: int
    total: int
    used: int  # pages that a sequence refers to
    shared: int  # of these, those that more than one refers to
    arriving: int  # of these, those that are being read back
    leaving: int  # pages that only a transfer uses
    beyond: int  # pages used or leaving for which the pool has become too small meanwhile
    cached: int
    reserved: int  # of the cached and the free, promised and not drawn yet
    unfilled: int
    duplicate: int | None
    map: str  # a PageState for each `pages_per_code` pages, the commonest of them
    pages_per_code: int
    slots: int  # pages that the swap space has room for
    slots_used: int
    swapped: int  # requests that have pages there, or on the way there or back

    @property
    def free(self) -> int:
        return self.total - (self.used + self.leaving - self.beyond) - self.cached


SegmentKind = Literal["process", "weights", "workspace", "pool", "swap"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the memory budget (bytes): of a model, or of the daemon itself where `owner` is empty."""

    owner: str
    kind: SegmentKind
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ModelStats:
    """One model, in memory or not. Sizes are bytes; times and counts are since the start."""

    name: str
    resident: bool
    pinned: bool
    running: int  # requests
    waiting: int
    page_tokens: int
    page_bytes: int
    pages_total: int  # in the pool now
    pages_used: int
    pages_cached: int
    pages_least: int  # bounds of the pool
    pages_most: int
    weights: int
    workspace: int
    loads: int
    unloads: int
    load_ns: Nanoseconds
    unload_ns: Nanoseconds


@record(frozen=True, slots=True)
class KernelStats:
    """Gauges and counters of the kernel at one moment."""

    slots: int
    running: int
    waiting: int
    prefilling: int
    pages_total: int
    pages_used: int
    pages_shared: int  # pages with more than one reference
    page_tokens: int
    accepted: int
    finished: int
    cancelled: int
    failed: int
    preemptions: int
    prompt_tokens: int  # computed, recomputation included
    generated_tokens: int
    drafted_tokens: int  # fed as guesses
    accepted_tokens: int  # of them right
    policy: str
    requests: tuple[RequestView, ...] = field(default=())
    suspended: int = 0
    pages_cached: int = 0  # kept for their prefixes, nobody refers to them
    reused_tokens: int = 0  # found in the prefix cache instead of computed
    parked: int = 0  # of the waiting, those that wait for their user's quota
    swap_slots: int = 0  # pages that the swap space has room for
    swap_slots_used: int = 0
    swap_outs: int = 0  # pages written, failures included
    swap_ins: int = 0  # pages read, failures included
    swap_failures: int = 0  # of these
    swapped: int = 0  # times that a request's pages were swapped out
    recomputed_tokens: int = 0  # that evicted requests had computed before
    pages_reserved: int = 0  # promised, not drawn yet
    users: tuple[UserUsage, ...] = ()  # with `requests` only, and so
    pools: tuple[PoolView, ...] = ()  # one a model
    budget: int = 0  # bytes of memory that models and daemon may take
    budget_free: int = 0
    fragmentation: float = 0.0  # share of what is free outside the largest hole
    models: tuple[ModelStats, ...] = ()
    segments: tuple[Segment, ...] = ()
