"""Formats, page pools and segments."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from llmosd.types.latency import Nanoseconds

WeightFormat = Literal["file", "float32"]
"""Weights as they are in the model's file, mostly 4 and 8 bits, or all of them expanded."""

KvFormat = Literal["float16", "float32", "int8"]
"""What a page keeps of K and V. int8 has one float32 scale for each token and KV head."""

KvChoice = KvFormat | Literal["auto"]
EvictionMode = Literal["auto", "recompute", "swap"]
"""How requests that gave their pages up get them back: whatever is cheaper, or always the same way (if it can be)."""


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
