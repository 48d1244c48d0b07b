"""Batches on their way from the engine's thread to the event loop's."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from llmosd.application.engine_messages import Batch


class Outbox:
    """In order, each passed to `receive` on the event loop.

    Beside `call_soon_threadsafe` it spares the engine two things between steps: a socket's way through the kernel, and
    the interpreter lock, which is kept while the loop is woken. Who gives it up there finds the loop at work and has to
    wait until that is done; the step that follows gives it up anyway.
    """

    def __init__(self, receive: Callable[[Batch], None]) -> None:
        """To be made on the event loop; lives as long as that."""
        self._receive = receive
        self._batches = deque[Batch]()
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)
        self._write = ctypes.PyDLL(None).write  # os.write gives the lock up
        self._write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        asyncio.get_running_loop().add_reader(self._woken, self.drain)

    def put(self, batch: Batch) -> None:
        """From the engine's thread. A pipe that is full, and takes no more, has woken the loop already."""
        self._batches.append(batch)
        self._write(self._waker, b"!", 1)

    def drain(self) -> None:
        """Pass on all there is, on the event loop."""
        with suppress(BlockingIOError):
            os.read(self._woken, 4096)
        while self._batches:
            self._receive(self._batches.popleft())
