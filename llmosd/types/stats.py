"""Gauges and counters of the kernel at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmosd.record import record
from llmosd.types.memory import ModelStats, PoolView, Segment
from llmosd.types.requests import RequestView


@dataclass(frozen=True, slots=True)
class UserUsage:
    """What a user holds now and has used since the start. `user` None: all those whose names are not kept, together.

    A page that several requests share counts for each of them whole.
    """

    user: str | None
    live: int = 0  # requests that wait, run or stand still
    running: int = 0
    pages: int = 0  # held by its running requests
    page_ns: int = 0
    prefilled_tokens: int = 0  # computed, recomputation included
    reused_tokens: int = 0  # found in the prefix cache instead
    generated_tokens: int = 0


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
    suspended: int = 0  # stand still: by command, or until their client reads
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
    model: str = ""  # the first one's where these are sums
    parts: tuple[KernelStats, ...] = ()  # of each model, where these are sums
