"""A model among those that share the memory: its kernel, what it takes, where it is in coming and going."""

from __future__ import annotations

from dataclasses import dataclass

from llmosd.system.kernel import Kernel
from llmosd.system.turns import LAST, Urgency
from llmosd.types import ModelStats, Nanoseconds


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model takes of memory when it is loaded (bytes), and how few pages its pool may have."""

    weights: int = 0
    workspace: int = 0
    page: int = 0
    least: int = 1
    swap: int = 0  # buffers between pool and swap file

    def bytes(self, pages: int) -> int:
        return self.weights + self.workspace + self.swap + pages * self.page


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to be known: pinned ones are never unloaded, others after `keep_alive` without work (None: never)."""

    kernel: Kernel
    size: ModelSize = ModelSize()
    pinned: bool = False
    keep_alive: Nanoseconds | None = None


@dataclass(slots=True, eq=False)
class Member:
    """A model, loaded or not. Times are None where there is nothing to time."""

    kernel: Kernel
    size: ModelSize
    pinned: bool
    keep_alive: Nanoseconds | None
    resident: bool = False
    since: Nanoseconds = 0  # when it was loaded
    used: Nanoseconds = 0  # when it last had work
    waits: Nanoseconds | None = None  # since when it is a claimant
    closing: Nanoseconds | None = None  # since when it admits no more requests
    wanted: bool = False  # a person wants it loaded; until it is
    leaving: bool = False  # a person wants it unloaded; as soon as it has no work
    target: int = 0  # pages that its pool shall have
    extent: int = 0  # pages whose memory it has
    loads: int = 0
    unloads: int = 0
    load_ns: Nanoseconds = 0
    unload_ns: Nanoseconds = 0

    @property
    def name(self) -> str:
        return self.kernel.model

    @property
    def most(self) -> int:
        return self.kernel.limits.pages

    @property
    def floor(self) -> int:
        """Pages without which a request that runs or waits could not end."""
        return max(self.size.least, self.kernel.floor)

    @property
    def is_needed(self) -> bool:
        return self.wanted or not self.kernel.idle

    @property
    def can_leave(self) -> bool:
        """Whether it is to be unloaded now because a person wants it so."""
        return self.leaving and self.resident and self.kernel.idle

    @property
    def is_short(self) -> bool:
        return self.resident and self.kernel.pool.total < self.kernel.floor

    @property
    def admits(self) -> bool:
        """Whether requests that wait may begin to run; else those that run may go on."""
        return self.closing is None and self.waits is None

    @property
    def serves(self) -> bool:
        """Whether it has something to do that it has the memory for."""
        kernel = self.kernel
        return self.resident and not kernel.idle and (self.admits or kernel.running > 0 or kernel.transferring)

    @property
    def urgency(self) -> Urgency:
        urgency = self.kernel.urgency
        return LAST if urgency is None else urgency

    def expires(self) -> Nanoseconds | None:
        """When it is to be unloaded if nobody asks for it until then."""
        if self.can_leave:
            return self.used
        if self.pinned or self.keep_alive is None or not self.resident or not self.kernel.idle:
            return None
        return self.used + self.keep_alive

    def stats(self) -> ModelStats:
        pool = self.kernel.pool
        return ModelStats(
            name=self.name,
            resident=self.resident,
            pinned=self.pinned,
            running=self.kernel.running,
            waiting=len(self.kernel.policy),
            page_tokens=self.kernel.limits.page_tokens,
            page_bytes=self.size.page,
            pages_total=pool.total,
            pages_used=pool.used,
            pages_cached=pool.cache.idle,
            pages_least=self.size.least,
            pages_most=self.most,
            weights=self.size.weights,
            workspace=self.size.workspace,
            loads=self.loads,
            unloads=self.unloads,
            load_ns=self.load_ns,
            unload_ns=self.unload_ns,
        )
