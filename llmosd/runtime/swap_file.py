"""A scratch file that extends the page pool: numbered slots of one page each, written and read whole."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import weakref
from fcntl import F_GETFL, F_SETFL, fcntl
from pathlib import Path

import numpy as np

from llmosd.errors import ConfigError
from llmosd.runtime.page_bytes import Bytes, best_checksum

ALIGNMENT = 4096  # bytes, of slots and buffers: what every disk and file system takes without its page cache


PROBED = 8  # slots that `probe` writes and reads


def slot_bytes(page_bytes: int) -> int:
    """What a slot takes of the file."""
    return -(-page_bytes // ALIGNMENT) * ALIGNMENT


class SwapFile:
    """`slots` slots of `page_bytes` bytes each; threads may use different ones at once.

    The file has mode 0600 and no name, so that nothing is left of it however the process ends. It is sparse: a slot
    takes room on disk when it is first written. It bypasses the page cache where the file system lets it.
    """

    def __init__(self, directory: Path, slots: int, page_bytes: int) -> None:
        """Raises ConfigError where the file cannot be made."""
        self.slots, self.page_bytes = slots, page_bytes
        self._slot_bytes = slot_bytes(page_bytes)
        self._checksum = best_checksum()
        self._checksums: list[int | None] = [None] * slots
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - lives as long as we do
            os.ftruncate(self.fileno(), slots * self._slot_bytes)
        except OSError as error:
            size = slots * self._slot_bytes
            raise ConfigError(f"no swap file of {size} bytes in {directory}: {error.strerror}", param="swap") from error
        weakref.finalize(self, self._file.close)
        self.direct = _bypass_page_cache(self.fileno())

    def fileno(self) -> int:
        return self._file.fileno()

    def buffer(self) -> Bytes:
        """Memory for one page that `write` and `read` take: aligned, and of a slot's size."""
        return np.frombuffer(mmap.mmap(-1, self._slot_bytes), np.uint8)

    def write(self, slot: int, buffer: Bytes) -> None:
        """Put the buffer's page in a slot; raises OSError, and the slot holds nothing then."""
        self._checksums[slot] = None
        written = os.pwrite(self.fileno(), buffer.data, slot * self._slot_bytes)
        if written < self._slot_bytes:
            raise OSError(f"slot {slot} took {written} of {self._slot_bytes} bytes")
        self._checksums[slot] = self._checksum(buffer)

    def read(self, slot: int, buffer: Bytes) -> None:
        """Fill the buffer with a slot's page; raises OSError unless it is what was written."""
        expected = self._checksums[slot]
        if expected is None:
            raise OSError(f"slot {slot} holds nothing")
        found = os.preadv(self.fileno(), [buffer.data], slot * self._slot_bytes)
        if found < self._slot_bytes:
            raise OSError(f"slot {slot} gave {found} of {self._slot_bytes} bytes")
        if self._checksum(buffer) != expected:
            raise OSError(f"slot {slot} holds other bytes than were written")

    def probe(self) -> float:
        """Seconds that a slot takes to be written or read, on average; before any is in use. Raises OSError."""
        buffer, slots = self.buffer(), range(min(PROBED, self.slots))
        began = time.perf_counter()
        for slot in slots:
            self.write(slot, buffer)
        for slot in slots:
            self.read(slot, buffer)
        took = time.perf_counter() - began
        self._checksums[: len(slots)] = [None] * len(slots)
        return took / (2 * len(slots))

    def close(self) -> None:
        self._file.close()


def _bypass_page_cache(descriptor: int) -> bool:
    """Whether reads and writes go to the disk itself: pages have a cache above already, the pool."""
    try:
        fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | os.O_DIRECT)
    except (AttributeError, OSError):  # not on this system, not on this file system
        return False
    return True
