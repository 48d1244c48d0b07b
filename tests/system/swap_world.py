"""The memory world with a swap space: sequences go out and come back, transfers take their time and fail."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from llmosd.system.pager import Pager
from llmosd.system.swap import Image, SwapSpace
from llmosd.types import PageTransfer, State, TransferDone
from tests.system.memory_world import MemoryWorld, Row, as_bytes

GARBAGE = -2


@dataclass(eq=False)
class Part:
    """A sequence that is out, as the pager sees it."""

    id: int
    source: Row
    row: int
    past: int


@dataclass(eq=False)
class Swapped:
    """Sequences forked from each other that are out, or on their way: to the pager a request."""

    id: str
    live: list[Part]
    state: State = State.DECODE
    image: Image | None = None

    @property
    def shared(self) -> list[int]:
        """Tokens that all of them begin with."""
        first, *others = [part.source.tokens[: part.past] for part in self.live]
        equal = (all(other[:end] == first[:end] for other in others) for end in range(1, len(first) + 1))
        return first[: sum(takewhile(bool, equal))]


class SwapWorld(MemoryWorld):
    def __init__(self, pages: int, rows: int, columns: int, size: int, slots: int) -> None:
        self.slots = slots
        self.out = self.back = self.faults = 0
        super().__init__(pages, rows, columns, size)

    def _build(self) -> None:
        super()._build()
        self.pager = Pager(SwapSpace(self.slots), self.table)
        self.swapped: list[Swapped] = []
        self.returning: list[Swapped] = []
        self.images: list[Image] = []
        self.under_way: list[tuple[PageTransfer, bool, list[int]]] = []
        self.file: list[list[int] | None] = [None] * self.slots

    # ---- operations

    def swap_out(self, place: int) -> bool:
        if not self.rows:
            return False
        family = self.rows[place % len(self.rows)].family
        rows = [row for row in self.rows if row.family == family]
        if self.table.distinct([row.number for row in rows]) > self.pager.space.free:
            return False
        self.out += 1
        gone = Swapped(f"s{self.out}", [Part(i, row, row.number, len(row.tokens)) for i, row in enumerate(rows)])
        gone.image = self.pager.page_out(gone)
        self.images.append(gone.image)
        self.swapped.append(gone)
        for row in rows:
            self.rows.remove(row)
            self._enter_tail(row)
            self.table.release(row.number)
        return True

    def swap_in(self, place: int) -> bool:
        ready = [one for one in self.swapped if not one.image.under_way]
        if not ready:
            return False
        one = ready[place % len(ready)]
        tokens, salt = one.shared, one.live[0].source.salt
        path = self.cache.walk(self.cache.root(salt), as_bytes(tokens))
        missing = len({slot for slots in one.image.slots.values() for slot in slots[len(path) :]})
        needed = missing + sum(self.cache.is_idle(node.page) for node in path)
        if len(one.live) > self.table.free_rows or needed > self.pool.available:
            return False
        self.swapped.remove(one)
        self.returning.append(one)
        for part in one.live:
            part.row = part.source.number = self.table.take_row()
            part.source.node = path[-1] if path else None
            for node in path:
                self.table.adopt(part.row, node.page)
        self.pager.page_in(one.image, one, len(path))
        self.images.append(one.image)
        if not one.image.under_way:
            self._restore(one)
        return True

    def set_off(self) -> bool:
        """What a plan does: transfers begin, and what is read into holds garbage."""
        wanted = self.pager.take()
        for inward, transfers in zip((False, True), wanted, strict=True):
            for transfer in transfers:
                if inward:
                    self.contents[transfer.page] = [GARBAGE] * self.size
                self.under_way.append((transfer, inward, list(self.contents[transfer.page])))
        return any(wanted)

    def arrive(self, place: int, fault: bool) -> bool:
        if not self.under_way:
            return False
        transfer, inward, before = self.under_way.pop(place % len(self.under_way))
        assert self.contents[transfer.page] == before, "a page changed on its way"
        if not fault and inward:
            stored = self.file[transfer.slot]
            assert stored is not None, "a slot is read that holds nothing"
            self.contents[transfer.page] = list(stored)
        elif not inward:
            self.file[transfer.slot] = None if fault else before
        self.faults += fault
        done = TransferDone(transfer, inward, 1, "on purpose" if fault else None)
        assert self.pager.knows(done)
        if (image := self.pager.report(done)) is not None:
            self._arrived(image)
        return True

    def forget(self, place: int) -> bool:
        """A sequence that is out, or on its way, is wanted no more."""
        everyone = [*self.swapped, *self.returning]
        if not everyone:
            return False
        one = everyone[place % len(everyone)]
        if one in self.returning:
            self.returning.remove(one)
            for part in one.live:
                self.table.release(part.row)
        else:
            self.swapped.remove(one)
        self.pager.drop(one.image)
        return True

    def crash(self) -> bool:
        self.rows += [part.source for one in [*self.swapped, *self.returning] for part in one.live]
        return super().crash()

    def drain(self) -> None:
        while self.swapped or self.returning:
            self.forget(0)
        self.set_off()
        while self.under_way:
            self.arrive(0, False)
        assert (self.pager.space.free, self.pool.pinned) == (self.slots, 0), "slots or pins have leaked"
        super().drain()

    # ---- how

    def _arrived(self, image: Image) -> None:
        [one] = [one for one in [*self.swapped, *self.returning] if one.image is image]
        if one in self.returning:
            self._restore(one)
        elif image.errors:  # some of it is nowhere: it computes again, if there is memory
            self.swapped.remove(one)
            self.pager.drop(image)
            for part in one.live:
                self.begin(part.source.salt, part.source.tokens)

    def _restore(self, one: Swapped) -> None:
        self.returning.remove(one)
        for part in one.live:
            good, row = one.image.good(part.id), part.source
            self.table.cut(row.number, good)
            past = min(part.past, good * self.size)
            del row.tokens[past:], row.states[past:]
            self.rows.append(row)
            self._settle(row)
        self.pager.drop(one.image)
        self.back += 1

    # ---- invariants

    @property
    def in_transfer(self) -> set[int]:
        pinned = {page for image in self.images for page in image.pinned}
        coming = {page for one in self.returning for part in one.live for page in self.table.contents(part.row)}
        return pinned | coming

    def check(self) -> None:
        super().check()
        self.images = [image for image in self.images if image.pinned]
        self.pager.check([one.image for one in [*self.swapped, *self.returning]])
