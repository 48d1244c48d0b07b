"""A symbolic swap file: transfers that take some steps, and that fail as often as they are told to.

While a page is on its way its contents must not change, and nothing may be done to it but to read what goes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llmosd.types import PageTransfer, Plan, TransferDone

GARBAGE = -2
ERRORS = ("No space left on device", "Input/output error", "checksum differs", "the file is shorter than the slot")


@dataclass
class UnderWay:
    transfer: PageTransfer
    inward: bool
    left: int  # executions until it is done
    before: list[int]


class SymbolicSwap:
    """`delay` is the most that a transfer takes, in executions; a share `fault` of them fails."""

    def __init__(self, pages: list[list[int]], slots: int, seed: int = 0, delay: int = 0, fault: float = 0.0) -> None:
        self.delay, self.fault = delay, fault
        self.failed = self.done = 0
        self._pages = pages
        self._slots: list[list[int] | None] = [None] * slots
        self._random = Random(seed)
        self._under_way: list[UnderWay] = []
        self._step = -1

    def start(self, plan: Plan) -> None:
        """Set a plan's transfers off, once if it is executed twice."""
        if plan.step == self._step:
            return
        self._step = plan.step
        for inward, transfers in ((False, plan.page_outs), (True, plan.page_ins)):
            for transfer in transfers:
                self._begin(transfer, inward)

    def _begin(self, transfer: PageTransfer, inward: bool) -> None:
        busy = {other.transfer.slot for other in self._under_way}
        assert transfer.slot not in busy, "a slot is used by two transfers"
        if inward:
            assert transfer.page not in self.leaving | self.entering, "a page that is on its way is read into"
            self._pages[transfer.page] = [GARBAGE] * len(self._pages[transfer.page])
        else:
            assert transfer.page not in self.entering, "a page on its way in is written out"
            self._slots[transfer.slot] = None
        before = list(self._pages[transfer.page])
        self._under_way.append(UnderWay(transfer, inward, self._random.randint(0, self.delay), before))

    def finished(self, *, at_least_one: bool) -> tuple[TransferDone, ...]:
        done = [other for other in self._under_way if other.left <= 0]
        if at_least_one and not done and self._under_way:
            done = [min(self._under_way, key=lambda other: other.left)]
        for other in self._under_way:
            other.left -= 1
        self._under_way = [other for other in self._under_way if other not in done]
        return tuple(self._end(other) for other in done)

    def _end(self, ended: UnderWay) -> TransferDone:
        transfer, error = ended.transfer, None
        assert self._pages[transfer.page] == ended.before, "a page changed on its way"
        self.done += 1
        if self._random.random() < self.fault:
            self.failed += 1
            error = self._random.choice(ERRORS)
        elif ended.inward:
            stored = self._slots[transfer.slot]
            assert stored is not None, "a slot is read that holds nothing"
            self._pages[transfer.page] = list(stored)
        else:
            self._slots[transfer.slot] = list(ended.before)
        return TransferDone(transfer, ended.inward, self._random.randint(1, 1000), error)

    @property
    def leaving(self) -> set[int]:
        return {other.transfer.page for other in self._under_way if not other.inward}

    @property
    def entering(self) -> set[int]:
        return {other.transfer.page for other in self._under_way if other.inward}
