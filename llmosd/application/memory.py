"""What memory is used for, as JSON shows it: `/v1/memory`, `llmosd mem`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmosd.types import KernelStats, ModelStats, PoolView, UserUsage

TOP_USERS = 20


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A part of the memory budget, which is an address space of its own.

    `kind` is process, weights, workspace, pool, or swap: its buffers. `owner` is a model, empty for the daemon itself.
    A pool's memory comes as pages are written.
    """

    owner: str
    kind: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ResidenceInfo:
    """A model that has been asked for: whether it is in memory, between which bounds its pool is, how often it came."""

    model: str
    resident: bool
    pinned: bool
    pages_least: int
    pages_most: int
    loads: int
    unloads: int
    load_s: float  # all together
    unload_s: float

    @classmethod
    def of(cls, model: ModelStats) -> ResidenceInfo:
        return cls(
            model.name,
            model.resident,
            model.pinned,
            model.pages_least,
            model.pages_most,
            model.loads,
            model.unloads,
            model.load_ns / 1e9,
            model.unload_ns / 1e9,
        )


@dataclass(frozen=True, slots=True)
class PagesInfo:
    """used + leaving + cached + free are the total, but while a pool that has shrunk still holds pages `beyond` it.

    Of the used ones some are shared, or arriving from disk; of the cached and free ones some are promised.
    """

    total: int
    used: int
    shared: int
    arriving: int
    leaving: int
    beyond: int
    cached: int
    free: int
    promised: int


@dataclass(frozen=True, slots=True)
class WasteInfo:
    """In tokens that there would be room for, and the bytes of all three.

    `internal`: places after the last token of each sequence. `duplicate`: tokens that another page in use holds too;
    null without a prefix cache. `reserved`: promised pages, to be drawn soon.
    """

    internal: int
    duplicate: int | None
    reserved: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SwapInfo:
    """Pages in the swap space, and the requests that they are of."""

    total: int
    used: int
    requests: int


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """One model's. A letter of `map` stands for `pages_per_letter` pages: used, shared, cached, `o` on the way to disk,
    `i` on the way in, `.` free, `-` not there while the pool is smaller than it may be.
    """

    model: str
    page_tokens: int
    page_bytes: int
    pages: PagesInfo
    waste: WasteInfo
    swap: SwapInfo
    map: str
    pages_per_letter: int

    @classmethod
    def of(cls, pool: PoolView, page_bytes: int) -> PoolInfo:
        reserved = pool.reserved * pool.page_tokens
        wasted = pool.unfilled + (pool.duplicate or 0) + reserved
        return cls(
            pool.model,
            pool.page_tokens,
            page_bytes,
            PagesInfo(
                total=pool.total,
                used=pool.used,
                shared=pool.shared,
                arriving=pool.arriving,
                leaving=pool.leaving,
                beyond=pool.beyond,
                cached=pool.cached,
                free=pool.free,
                promised=pool.reserved,
            ),
            WasteInfo(pool.unfilled, pool.duplicate, reserved, wasted * page_bytes // pool.page_tokens),
            SwapInfo(pool.slots, pool.slots_used, pool.swapped),
            pool.map,
            pool.pages_per_code,
        )


@dataclass(frozen=True, slots=True)
class UserInfo:
    """What a user holds and has used since the start; `user` null is all those together whose names are not kept.

    `hit_rate`: of the tokens that had to be in pages, how many were found in the prefix cache (0 … 1).
    """

    user: str | None
    requests: int
    running: int
    pages: int
    page_s: float
    generated_tokens: int
    hit_rate: float | None

    @classmethod
    def of(cls, usage: UserUsage) -> UserInfo:
        return cls(
            usage.user,
            usage.live,
            usage.running,
            usage.pages,
            usage.page_ns / 1e9,
            usage.generated_tokens,
            hit_rate(usage.reused_tokens, usage.prefilled_tokens),
        )


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """`users`: those that hold most, at most 20. `fragmentation`: the share of `free` outside its largest hole."""

    budget: int
    free: int
    fragmentation: float
    models: Sequence[ResidenceInfo]
    segments: Sequence[SegmentInfo]
    pools: Sequence[PoolInfo]
    running: int
    waiting: int
    parked: int
    suspended: int
    hit_rate: float | None
    users: Sequence[UserInfo]

    @classmethod
    def of(cls, stats: KernelStats) -> MemoryInfo:
        """From stats that were asked for with all requests."""
        page_bytes = {model.name: model.page_bytes for model in stats.models}
        return cls(
            stats.budget,
            stats.budget_free,
            stats.fragmentation,
            [ResidenceInfo.of(model) for model in stats.models],
            [SegmentInfo(one.owner, one.kind, one.offset, one.size) for one in stats.segments],
            [PoolInfo.of(pool, page_bytes[pool.model]) for pool in stats.pools],
            stats.running,
            stats.waiting,
            stats.parked,
            stats.suspended,
            hit_rate(stats.reused_tokens, stats.prompt_tokens),
            [UserInfo.of(usage) for usage in stats.users[:TOP_USERS]],
        )


def hit_rate(reused: int, computed: int) -> float | None:
    return reused / (reused + computed) if reused + computed else None
