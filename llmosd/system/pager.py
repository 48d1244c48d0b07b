"""Pages between the pool and the swap space: what the next plan sets off, what is under way, what came of it.

A page is pinned from the moment its transfer is asked for: nobody draws it, nobody writes to it. The pages of one image
are let go together, when the last of them is reported, so that no page of the prefix cache is idle before those behind
it. A slot is free again when nobody wants it and no transfer uses it.
"""

from __future__ import annotations

from llmosd.system.pages import PageTable
from llmosd.system.request import Request
from llmosd.system.swap import Image, SwapSpace
from llmosd.types import PageTransfer, TransferDone


class Pager:
    """Owns the swap space and the transfers; requests hold their images."""

    def __init__(self, space: SwapSpace, table: PageTable) -> None:
        self.space = space
        self.outs = self.ins = self.failures = 0  # transfers that have ended
        self._leaving = self._coming = 0  # transfers that have not
        self._table = table
        self._pool = table.pool
        self._images: dict[int, Image] = {}  # by slot, while a transfer uses it
        self._wanted: list[Image] = []  # whose transfers the next plan sets off

    @property
    def idle(self) -> bool:
        return not self._images

    @property
    def under_way(self) -> tuple[int, int]:
        """Page-outs and page-ins that have not ended."""
        return self._leaving, self._coming

    # ---- asking

    def page_out(self, request: Request) -> Image:
        """Write out what the request holds; its rows may be released at once. There must be slots for its pages."""
        image, slots = Image(request.id, request.state), dict[int, int]()
        for sequence in request.live:
            image.past[sequence.id] = sequence.past
            columns = image.slots[sequence.id] = []
            for page in self._table.contents(sequence.row):
                if page not in slots:
                    slots[page] = self.space.take(request.id)
                columns.append(slots[page])
        self._ask(image, {slot: page for page, slot in slots.items()})
        return image

    def page_in(self, image: Image, request: Request, known: int) -> None:
        """Read back all but the first `known` pages of each sequence, which its row has already."""
        pages = dict[int, int]()
        for sequence in request.live:
            for slot in image.slots[sequence.id][known:]:
                if slot in pages:
                    self._table.adopt(sequence.row, pages[slot])
                else:
                    pages[slot] = self._table.draw(sequence.row)
        image.inward = True
        self._ask(image, pages)

    def drop(self, image: Image) -> None:
        """Nobody wants it any more."""
        image.dropped = True
        if image in self._wanted:
            self._wanted.remove(image)
            for slot in image.under_way:
                del self._images[slot]
            self._count(image, -len(image.under_way))
            image.under_way.clear()
            self._unpin(image)
        if not image.under_way:
            self._free(image)

    # ---- plans and reports

    def take(self) -> tuple[tuple[PageTransfer, ...], tuple[PageTransfer, ...]]:
        """(page-outs, page-ins) that the next plan sets off."""
        if not self._wanted:
            return (), ()
        images, self._wanted = self._wanted, []
        outs, ins = (
            tuple(
                PageTransfer(page, slot)
                for image in images
                if image.inward is inward
                for slot, page in image.under_way.items()
            )
            for inward in (False, True)
        )
        return outs, ins

    def knows(self, done: TransferDone) -> bool:
        """Whether this is under way."""
        image, transfer = self._images.get(done.transfer.slot), done.transfer
        return image is not None and image.inward is done.inward and image.under_way[transfer.slot] == transfer.page

    def report(self, done: TransferDone) -> Image | None:
        """Take in what came of a transfer; its image, if this was the last one and somebody wants it."""
        image, slot = self._images.pop(done.transfer.slot), done.transfer.slot
        del image.under_way[slot]
        self._count(image, -1)
        image.ns += done.ns
        self.outs += not done.inward
        self.ins += done.inward
        if done.error is not None:
            self.failures += 1
            image.errors[slot] = done.error
        if image.under_way:
            return None
        self._unpin(image)
        if image.dropped:
            self._free(image)
            return None
        return image

    def inward(self) -> set[int]:
        """Pages that are being read back."""
        images = {image for image in self._images.values() if image.inward}
        return {page for image in images for page in image.under_way.values()}

    # ---- small things

    def _ask(self, image: Image, pages: dict[int, int]) -> None:
        for slot, page in pages.items():
            self._pool.pin(page)
            image.pinned.append(page)
            self._images[slot] = image
        image.under_way = pages
        self._count(image, len(pages))
        if pages:
            self._wanted.append(image)

    def _count(self, image: Image, transfers: int) -> None:
        if image.inward:
            self._coming += transfers
        else:
            self._leaving += transfers

    def _unpin(self, image: Image) -> None:
        for page in image.pinned:
            self._pool.unpin(page)
        image.pinned.clear()

    def _free(self, image: Image) -> None:
        for slot in image.distinct:
            self.space.give(slot)

    # ---- invariants

    def check(self, images: list[Image]) -> None:
        """`images` are those that requests hold."""
        self.space.check()
        for slot, image in self._images.items():
            assert slot in image.under_way, "a slot is in use by a transfer that is not under way"
        held = {id(image): image for image in [*images, *self._images.values()]}.values()
        slots = [slot for image in held for slot in image.distinct]
        assert len(set(slots)) == len(slots) == self.space.used, "slots do not add up"
        for image in held:
            assert all(self.space.owner(slot) == image.owner for slot in image.distinct), "a slot is another's"
            assert all(self._images[slot] is image for slot in image.under_way), "a transfer was lost"
            assert len(image.under_way) <= len(image.pinned), "a page in transfer is not pinned"
            assert bool(image.under_way) == bool(image.pinned), "pages stay pinned without a transfer"
        assert sum(self.under_way) == len(self._images), "transfers under way are miscounted"
        assert not any(image.dropped for image in images), "a dropped image is held"
        pins = sum(len(image.pinned) for image in held)
        assert pins == self._pool.pinned, "pins do not add up"
