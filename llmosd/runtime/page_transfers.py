"""Pages between the pool and the swap file, on threads of their own beside the steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from llmosd.runtime.page_bytes import Bytes, PageBytes
from llmosd.runtime.swap_file import SwapFile
from llmosd.types import Nanoseconds, PageTransfer, Plan, TransferDone

THREADS = 4  # while one waits for the disk others copy and sum: with 4 the disk is busy nearly all the time


@dataclass(frozen=True, slots=True)
class _Ended:
    transfer: PageTransfer
    inward: bool
    began: Nanoseconds
    at: Nanoseconds
    error: str | None


class PageTransfers:
    """Its methods belong to one thread, the executor's. Its own threads are started by the first transfer."""

    def __init__(self, pages: PageBytes, file: SwapFile) -> None:
        assert file.page_bytes == pages.size
        self._pages, self._file = pages, file
        self._threads: list[Thread] = []
        self._orders = SimpleQueue[tuple[PageTransfer, bool] | None]()  # and whether inward; None ends a thread
        self._ended = SimpleQueue[_Ended | None]()  # None where the wait for one is interrupted
        self._interrupted = False  # and that is not noticed yet
        self._busy_until = 0  # when the last one ended that was told
        self._untold = 0  # transfers that were started and not told as finished
        self._step = -1  # whose transfers were started last

    def start(self, plan: Plan) -> None:
        """Set a plan's transfers off; nothing for a plan that is executed again."""
        if plan.step == self._step:
            return
        self._step = plan.step
        orders = [(one, False) for one in plan.page_outs] + [(one, True) for one in plan.page_ins]
        if orders and not self._threads:
            self._threads = [Thread(target=self._work, name=f"swap {n}", daemon=True) for n in range(THREADS)]
            for thread in self._threads:
                thread.start()
        for order in orders:
            self._orders.put(order)
        self._untold += len(orders)

    def finished(self, *, at_least_one: bool) -> tuple[TransferDone, ...]:
        """Those that have ended and were not told yet; waits for `at_least_one` if any is under way.

        Interrupted, it waits no longer.
        """
        done = list[TransferDone]()
        while self._untold and (not self._ended.empty() or (at_least_one and not done)):
            if ended := self._ended.get():
                done.append(self._tell(ended))
            else:
                self._interrupted = at_least_one = False
        return tuple(done)

    def interrupt(self) -> None:
        """From any thread."""
        if not self._interrupted:  # else the next wait is none
            self._interrupted = True
            self._ended.put(None)

    def _tell(self, ended: _Ended) -> TransferDone:
        """Its time is what it added to that of those before it, so that the times of all sum to what they took."""
        self._untold -= 1
        began, self._busy_until = max(ended.began, self._busy_until), max(ended.at, self._busy_until)
        return TransferDone(ended.transfer, ended.inward, self._busy_until - began, ended.error)

    def close(self) -> None:
        """End the threads, when they are done with what was started, and the file."""
        for _ in self._threads:
            self._orders.put(None)
        for thread in self._threads:
            thread.join()
        self._file.close()

    def _work(self) -> None:
        buffer = self._file.buffer()
        while (order := self._orders.get()) is not None:
            self._ended.put(self._transfer(*order, buffer))

    def _transfer(self, transfer: PageTransfer, inward: bool, buffer: Bytes) -> _Ended:
        began, error = time.perf_counter_ns(), None
        try:
            (self._page_in if inward else self._page_out)(transfer, buffer)
        except OSError as failure:
            error = failure.strerror or str(failure)
        return _Ended(transfer, inward, began, time.perf_counter_ns(), error)

    def _page_out(self, transfer: PageTransfer, buffer: Bytes) -> None:
        self._pages.gather(transfer.page, buffer)
        self._file.write(transfer.slot, buffer)

    def _page_in(self, transfer: PageTransfer, buffer: Bytes) -> None:
        self._file.read(transfer.slot, buffer)
        self._pages.scatter(transfer.page, buffer)
