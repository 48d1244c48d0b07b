"""Which models are in memory, how large their page pools are, and who makes room for whom.

A model that is asked for and not loaded is a claimant, and so is one whose pool is smaller than a request in it needs.
Claimants are served one after another: the most urgent first, of equals the one that has waited longest. For a claimant
pools give up what they have beyond their floor, pages in use there move inside; then models go: those without work by
least recent use, then busy ones by time since they were loaded. A busy one has a minimum of time to itself. After that
it admits no more requests; what runs may end until its patience is over, is preempted then, and waits until the model
is loaded again.

Everybody's turn comes: a model that is unloaded while requests wait for it is a claimant at once, behind those that
wait already, and whoever is loaded before it can be held for a bounded time. No preemption is without progress: only
requests that have gained a token since they were admitted are preempted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmosd.errors import DoesNotFit, InvalidRequest
from llmosd.system.member import Member, ModelEntry, ModelSize
from llmosd.system.segments import SegmentTable
from llmosd.system.turns import Urgency
from llmosd.types import (
    STANDING,
    Event,
    LoadDone,
    Loaded,
    LoadFailed,
    ModelStats,
    Nanoseconds,
    PoolSize,
    Unloaded,
    UnloadReason,
)

__all__ = ["ModelEntry", "ModelSize", "Residency"]

UNLIMITED = 1 << 62
SECOND = 1_000_000_000


@dataclass(slots=True)
class Change:
    """What is to be done before the next step, in this order, and what it means for requests."""

    unloads: list[str] = field(default_factory=list)
    resizes: list[PoolSize] = field(default_factory=list)
    loads: list[PoolSize] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.unloads or self.resizes or self.loads or self.events)


class Residency:
    """Owns the segment table and the members; tells kernels the size of their pools."""

    def __init__(
        self,
        budget: int = UNLIMITED,
        process: int = 0,
        minimum: Nanoseconds = 5 * SECOND,
        patience: Nanoseconds = 5 * SECOND,
    ) -> None:
        """Of `budget` bytes the daemon itself takes `process`. A loaded model has `minimum` to itself while it has
        work, and `patience` more for what runs to end."""
        self.table = SegmentTable(budget)
        self.table.resize("", "process", process)
        self.members: dict[str, Member] = {}
        self._minimum, self._patience = minimum, patience
        self._settled = True  # every pool has the size that is meant for it
        self._in_the_way: list[tuple[str, int]] = []
        self._reasons: dict[str, UnloadReason] = {}  # of unloads under way

    # ---- members

    def add(self, entry: ModelEntry) -> None:
        """Make a model known, not loaded. Raises DoesNotFit where it could not be, with the sizes."""
        member = Member(entry.kernel, entry.size, entry.pinned, entry.keep_alive)
        members = [*self.members.values(), member]
        for one in members if entry.pinned else [member]:
            self._check_fits(one, members)
        member.kernel.resize(0)
        self.members[member.name] = member

    def _check_fits(self, member: Member, members: list[Member]) -> None:
        """With its largest pool, beside the pinned ones with their smallest."""
        pinned = sum(one.size.bytes(one.size.least) for one in members if one.pinned and one is not member)
        room, size = self.table.budget - self.table.size("", "process") - pinned, member.size
        if size.bytes(member.most) > room:
            workspace = size.workspace + size.swap
            raise DoesNotFit(
                f"{member.name} needs {_mib(size.weights)} for weights, {_mib(workspace)} of workspace and "
                f"{_mib(member.most * size.page)} for pages; of {_mib(self.table.budget)} there are "
                f"{_mib(room)} for it: give the daemon more `memory`, or the model a smaller `context`",
                param="model",
            )

    def start(self, name: str) -> int:
        """A first model that is loaded before anything is planned; the pages of its pool."""
        member, change = self.members[name], Change()
        self._share(member, 0, change)
        [load] = change.loads
        self._enter(member, 0)
        return load.pages

    def asked(self, name: str, now: Nanoseconds) -> None:
        """A request has come for this model, or comes back."""
        member = self.members[name]
        member.used = now
        if member.is_short and member.waits is None:
            member.waits = now

    def load(self, name: str, now: Nanoseconds) -> None:
        """Load it without a request; from now on it is used, and stays as long as one that a request was for."""
        member = self.members[name]
        member.used, member.leaving, member.wanted = now, False, not member.resident

    def unload(self, name: str) -> None:
        """Unload it as soon as none of its requests runs or waits. Raises InvalidRequest for one that is pinned."""
        member = self.members[name]
        if member.pinned:
            raise InvalidRequest(f"{name} is pinned: take it out of `pinned` and start the daemon again", param="model")
        member.wanted, member.leaving = False, member.resident

    def serving(self) -> list[str]:
        """Models that the next step can serve."""
        return [name for name, member in self.members.items() if member.serves]

    def urgency(self, name: str) -> Urgency:
        return self.members[name].urgency

    def wake_at(self) -> Nanoseconds | None:
        """When a model without work is to be unloaded, or at once one loaded, if nothing happens until then."""
        if any(member.wanted for member in self.members.values()):
            return 0
        return min((at for member in self.members.values() if (at := member.expires()) is not None), default=None)

    # ---- before a step

    def arrange(self, now: Nanoseconds) -> Change:
        """What has to be loaded, unloaded and resized now."""
        change = Change()
        for member in self.members.values():
            if member.can_leave:
                self._unload(member, "asked", change)
        claimant = self._claimant(now)
        if claimant is None:
            self._close(set(), now)
            for member in self.members.values():
                if (at := member.expires()) is not None and at <= now:
                    self._unload(member, "idle", change)
        elif self._is_stuck(claimant, now) or not self._make_room(claimant, now, change):
            return change
        if claimant is not None or not (self._settled or (self._stragglers() and not self._can_move())):
            self._share(claimant, now, change)
        return change

    def _is_stuck(self, claimant: Member, now: Nanoseconds) -> bool:
        """Whether it waits for pages of others, and none has been given back since it was looked at."""
        before, self._in_the_way = self._in_the_way, self._stragglers()
        assert claimant.waits is not None
        unchanged = bool(before) and before == self._in_the_way and not self._can_move()
        return unchanged and now - claimant.waits < self._patience

    def _stragglers(self) -> list[tuple[str, int]]:
        """Pages in use beyond the size of their pool."""
        return [(member.name, pages) for member in self._residents() if (pages := member.kernel.pool.beyond)]

    def _can_move(self) -> bool:
        return any(member.kernel.pool.can_move for member in self._residents())

    def _claimant(self, now: Nanoseconds) -> Member | None:
        waiting = list[tuple[Urgency, Nanoseconds, str]]()
        for member in self.members.values():
            if member.resident and member.waits is not None and not member.is_short:
                member.waits = None  # who was in need of more has left
            if not member.resident and member.is_needed and member.waits is None:
                member.waits = now
            if member.waits is not None and not member.is_needed:
                member.waits = None
            if member.waits is not None:
                waiting.append((member.urgency, member.waits, member.name))
        return self.members[min(waiting)[2]] if waiting else None

    def _make_room(self, claimant: Member, now: Nanoseconds, change: Change) -> bool:
        """Let models go until the claimant fits beside the floors of the others; False while one of them is busy."""
        kept = {member: member.floor for member in self.members.values() if member.resident or member is claimant}
        victims = set[Member]()
        for victim in sorted((m for m in kept if m is not claimant), key=_worth):
            if self._bytes(kept) <= self.table.budget:
                break
            victims.add(victim)
            if victim.pinned:
                kept[victim] = victim.size.least
            else:
                del kept[victim]
        assert self._bytes(kept) <= self.table.budget, f"{claimant.name} does not fit the budget alone"
        self._close(victims, now)
        ready = [self._is_ready(victim, now, change) for victim in victims]
        if not all(ready):
            return False
        for victim in victims:
            if not victim.pinned:
                self._unload(victim, "room", change)
            elif victim.floor > victim.size.least:
                victim.waits = now
        return True

    def _close(self, victims: set[Member], now: Nanoseconds) -> None:
        for member in self.members.values():
            if member not in victims:
                member.closing = None
            elif member.closing is None and now - member.since >= self._minimum:
                member.closing = now

    def _is_ready(self, victim: Member, now: Nanoseconds, change: Change) -> bool:
        """Whether it can go now; its time and patience over, it is evacuated and can go when all is written out."""
        kernel = victim.kernel
        over = victim.closing is not None and now - victim.closing >= self._patience
        if over and kernel.running and not kernel.promised:
            change.events += kernel.evacuate(now)
        return kernel.idle or not (victim.admits or kernel.running or kernel.transferring)

    def _share(self, claimant: Member | None, now: Nanoseconds, change: Change) -> None:
        """Give every pool its floor and an equal part of what is left: first who has too much, then who has too little.

        The claimant is loaded as soon as it fits beside the pages that are still in use elsewhere.
        """
        self._set_targets(claimant)
        for member in self._residents():
            if member.extent > member.target:
                self._resize(member, min(member.target, member.kernel.pool.total), change)
        if claimant is not None and not claimant.resident:
            self._load(claimant, now, change)
        for member in self._residents():
            grown = min(member.target, member.kernel.pool.total + self._fitting(member))
            if grown > member.kernel.pool.total and not member.kernel.pool.beyond:
                self._resize(member, grown, change)
        self._settled = all(member.extent == member.target for member in self._residents())

    def _set_targets(self, claimant: Member | None) -> None:
        """Water-filling: floors first, then the same number of bytes for each, up to its largest size."""
        members = [m for m in self.members.values() if m.resident or m is claimant]
        for member in members:
            member.target = min(member.most, member.size.least if member.closing is not None else member.floor)
        left = self.table.budget - self._bytes({member: member.target for member in members})
        members.sort(key=lambda m: (m.most - m.target) * m.size.page)
        for place, member in enumerate(members):
            page = max(1, member.size.page)
            more = min(member.most - member.target, left // (len(members) - place) // page)
            member.target += more
            left -= more * page

    def _load(self, member: Member, now: Nanoseconds, change: Change) -> None:
        size = member.size
        fixed = size.bytes(0)
        pages = min(member.target, (self.table.free - fixed) // max(1, size.page))
        if pages < member.floor:
            self._hurry(member, now, change)
            return
        self.table.resize(member.name, "weights", size.weights)
        self.table.resize(member.name, "workspace", size.workspace)
        self.table.resize(member.name, "swap", size.swap)
        member.kernel.resize(pages)
        member.extent = pages
        self.table.resize(member.name, "pool", pages * size.page)
        change.loads.append(PoolSize(member.name, pages))

    def _hurry(self, claimant: Member, now: Nanoseconds, change: Change) -> None:
        """Pages in use that found no free one are in the way: patience over, as many are preempted as it takes."""
        assert claimant.waits is not None
        for member in self._residents():
            kernel, over = member.kernel, now - claimant.waits >= self._patience
            if over and kernel.pool.beyond and (preempted := kernel.squeeze(now)):
                change.events += preempted
                self._resize(member, min(member.target, kernel.pool.total), change)

    def _resize(self, member: Member, pages: int, change: Change) -> None:
        copies, extent = member.kernel.resize(pages), member.kernel.pool.extent
        if copies or extent != member.extent:
            member.extent = extent
            self.table.resize(member.name, "pool", extent * member.size.page)
            change.resizes.append(PoolSize(member.name, extent, copies))

    def _unload(self, member: Member, reason: UnloadReason, change: Change) -> None:
        member.kernel.resize(0)
        member.resident, member.closing, member.waits, member.leaving = False, None, None, False
        self.table.release(member.name)
        self._reasons[member.name] = reason
        self._settled = False
        change.unloads.append(member.name)

    # ---- afterwards

    def loaded(self, done: LoadDone, now: Nanoseconds) -> list[Event]:
        """A load of the last change has ended. If it failed, so do the requests that wait for the model."""
        member = self.members[done.model]
        if done.error is None:
            self._enter(member, now)
            member.loads += 1
            member.load_ns += done.ns
            return [Loaded(member.name, member.kernel.pool.total, done.ns, now)]
        member.kernel.resize(0)
        member.waits, member.wanted = None, False
        self.table.release(member.name)
        self._settled = False
        events: list[Event] = [LoadFailed(member.name, done.error, now)]
        for view in member.kernel.views():
            if view.state not in STANDING:
                events += member.kernel.fail(view.id, f"{member.name} could not be loaded: {done.error}", now)
        return events

    def unloaded(self, done: LoadDone, now: Nanoseconds) -> list[Event]:
        member = self.members[done.model]
        member.unloads += 1
        member.unload_ns += done.ns
        return [Unloaded(member.name, self._reasons.pop(member.name), done.ns, now)]

    def _enter(self, member: Member, now: Nanoseconds) -> None:
        member.resident, member.since, member.used, member.waits, member.wanted = True, now, now, None, False

    # ---- small things

    def stats(self) -> tuple[ModelStats, ...]:
        return tuple(member.stats() for member in self.members.values())

    def _residents(self) -> Iterator[Member]:
        return (member for member in self.members.values() if member.resident)

    def _bytes(self, pages: dict[Member, int]) -> int:
        """All that these models take with so many pages, and the daemon itself."""
        models = sum(member.size.bytes(count) for member, count in pages.items())
        return models + self.table.size("", "process")

    def _fitting(self, member: Member) -> int:
        """Pages more for which memory is free."""
        return self.table.free // member.size.page if member.size.page else member.most

    def check(self) -> None:
        self.table.check()
        for member in self.members.values():
            sizes = [self.table.size(member.name, kind) for kind in ("weights", "workspace", "swap", "pool")]
            pool, size = member.kernel.pool, member.size
            if member.resident:
                assert sizes[:3] == [size.weights, size.workspace, size.swap], f"{member.name} has {sizes}"
                assert pool.extent <= member.extent, f"{member.name} uses {pool.extent} pages and has {member.extent}"
                assert sizes[3] == member.extent * size.page, f"{member.name} has other pages than its segment"
            else:
                assert (sum(sizes), pool.extent) == (0, 0), f"{member.name} has memory and is not loaded"
                assert not member.kernel.running, f"{member.name} runs and is not loaded"


def _worth(member: Member) -> tuple[bool, bool, Nanoseconds]:
    """Smaller goes first."""
    busy = not member.kernel.idle
    return member.pinned, busy, member.since if busy else member.used


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
