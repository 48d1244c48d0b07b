"""The swap space: which slots of the swap file are free, and what of a request is in which of them.

Only slot numbers live here; the file belongs to the runtime. A slot holds one page.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmosd.types import Nanoseconds, RequestId, SequenceId, State


@dataclass(slots=True, eq=False)
class Image:
    """What a request had in pages, in the swap space or on its way there or back.

    `slots` has for each sequence those of its pages, in order; sequences that shared a page share the slot. `past` is
    how many tokens of its history they hold.
    """

    owner: RequestId
    state: State  # that the request left, and goes back to
    past: dict[SequenceId, int] = field(default_factory=dict)
    slots: dict[SequenceId, list[int]] = field(default_factory=dict)
    inward: bool = False  # which way its last transfers went
    under_way: dict[int, int] = field(default_factory=dict)  # page by slot, of transfers not reported yet
    pinned: list[int] = field(default_factory=list)  # pages, while any of its transfers is under way
    dropped: bool = False  # nobody wants it any more
    errors: dict[int, str] = field(default_factory=dict)  # by slot
    ns: Nanoseconds = 0  # of work on its transfers

    @property
    def distinct(self) -> set[int]:
        return {slot for slots in self.slots.values() for slot in slots}

    @property
    def error(self) -> str:
        """The first one that was reported; empty without any."""
        return next(iter(self.errors.values()), "")

    def good(self, sequence: SequenceId) -> int:
        """Pages of a sequence before the first one whose transfer failed."""
        slots = self.slots[sequence]
        return next((column for column, slot in enumerate(slots) if slot in self.errors), len(slots))


@dataclass(slots=True)
class SwapBudget:
    """Bytes of disk that the swap spaces of all models may still take."""

    left: int


class SwapSpace:
    """Slots with an O(1) free list; each one that is taken has one owner.

    A slot takes room on disk when it is first used, and keeps it: those that have some go first.
    """

    def __init__(self, slots: int, slot_bytes: int = 0, budget: SwapBudget | None = None) -> None:
        """Of `slots` slots as many can be used as the budget that it shares with others has room for."""
        self.total = slots
        self._slot_bytes, self._budget = slot_bytes, budget or SwapBudget(0)
        self._touched = 0  # the first so many have been used
        self._free: list[int] = []  # of these
        self._owners: dict[int, RequestId] = {}

    @property
    def free(self) -> int:
        fresh = self.total - self._touched
        affordable = self._budget.left // self._slot_bytes if self._slot_bytes else fresh
        return len(self._free) + min(fresh, affordable)

    @property
    def used(self) -> int:
        return len(self._owners)

    def take(self, owner: RequestId) -> int:
        """A free slot; the caller has made sure that there is one."""
        if self._free:
            slot = self._free.pop()
        else:
            assert self.free, "a slot is taken that is not there"
            slot, self._touched = self._touched, self._touched + 1
            self._budget.left -= self._slot_bytes
        self._owners[slot] = owner
        return slot

    def give(self, slot: int) -> None:
        del self._owners[slot]
        self._free.append(slot)

    def owner(self, slot: int) -> RequestId | None:
        return self._owners.get(slot)

    def check(self) -> None:
        free = set(self._free)
        assert len(free) == len(self._free), "a slot is in the free list twice"
        assert not free & self._owners.keys(), "a slot is free and has an owner"
        assert len(free) + len(self._owners) == self._touched <= self.total, "slots were lost"
        assert self._budget.left >= 0, "more disk is taken than there may be"
