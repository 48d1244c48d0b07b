"""What SIGTERM and SIGINT mean: the first asks the daemon to drain, the second to stop at once."""

from __future__ import annotations

import asyncio
import signal


class StopSignals:
    """To be made on the event loop's thread; takes the two signals over."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        if self.asked.is_set():
            self.forced.set()
        self.asked.set()
