"""Pages between the pool and the swap file, on threads of their own beside the steps."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from llmosd.runtime.page_bytes import Bytes, PageBytes
from llmosd.runtime.swap_file import SwapFile
from llmosd.types import PageTransfer, Plan, TransferDone

THREADS = 2  # one copies and sums while the other waits for the disk


class PageTransfers:
    """Its methods belong to one thread, the executor's. No thread of its own is started before the first transfer."""

    def __init__(self, pages: PageBytes, file: SwapFile) -> None:
        assert file.page_bytes == pages.size
        self._pages, self._file = pages, file
        self._threads = ThreadPoolExecutor(THREADS, "llmos-swap")
        self._buffers = SimpleQueue[Bytes]()
        for _ in range(THREADS):
            self._buffers.put(file.buffer())
        self._under_way: list[Future[TransferDone]] = []
        self._step = -1  # whose transfers were set off last

    def start(self, plan: Plan) -> None:
        """Set a plan's transfers off; nothing for a plan that is executed again."""
        if plan.step == self._step:
            return
        self._step = plan.step
        for inward, transfers in ((False, plan.page_outs), (True, plan.page_ins)):
            self._under_way += [self._threads.submit(self._transfer, one, inward) for one in transfers]

    def finished(self, *, at_least_one: bool) -> tuple[TransferDone, ...]:
        """Those that have ended and were not told yet; waits for `at_least_one` if any is under way."""
        if at_least_one and self._under_way:
            wait(self._under_way, return_when=FIRST_COMPLETED)
        done, under_way = list[TransferDone](), list[Future[TransferDone]]()
        for future in self._under_way:
            if future.done():
                done.append(future.result())
            else:
                under_way.append(future)
        self._under_way = under_way
        return tuple(done)

    def close(self) -> None:
        """End the threads, once they are done with the page in hand, and the file."""
        self._threads.shutdown(cancel_futures=True)
        self._file.close()

    def _transfer(self, transfer: PageTransfer, inward: bool) -> TransferDone:
        buffer, error = self._buffers.get(), None
        began = time.perf_counter_ns()
        try:
            (self._page_in if inward else self._page_out)(transfer, buffer)
        except OSError as failure:
            error = failure.strerror or str(failure)
        took = time.perf_counter_ns() - began
        self._buffers.put(buffer)
        return TransferDone(transfer, inward, took, error)

    def _page_out(self, transfer: PageTransfer, buffer: Bytes) -> None:
        self._pages.gather(transfer.page, buffer)
        self._file.write(transfer.slot, buffer)

    def _page_in(self, transfer: PageTransfer, buffer: Bytes) -> None:
        self._file.read(transfer.slot, buffer)
        self._pages.scatter(transfer.page, buffer)
