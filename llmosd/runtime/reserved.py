"""Addresses reserved ahead of memory: arrays that never move, and whose memory comes and goes."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which Python's mmap has from 3.13 on
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
_HUGE = 2 << 20  # bytes of a huge page


class Reserved:
    """`parts` ranges of `size` bytes each, of which `resize` says how much may be used.

    Memory is taken as a range is written to. The system counts none of it as promised, so that more can be reserved
    than there is. Within what may be used it takes huge pages, which speed long contexts up by some percent. To clear
    one takes milliseconds, so ranges begin at different places within one: where all are filled alike they do not need
    the next one at the same moment.
    """

    def __init__(self, parts: int, size: int) -> None:
        self._parts = parts
        pages, apart = -(-size // mmap.PAGESIZE), _HUGE // parts // mmap.PAGESIZE
        self._stride = pages * mmap.PAGESIZE
        self._stride += (apart * mmap.PAGESIZE - self._stride) % _HUGE
        self._memory = mmap.mmap(-1, parts * self._stride, flags=_FLAGS)
        self.resize(size)

    def array(self, part: int, kind: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """A range as an array from its start; zeros until written to."""
        return np.ndarray(shape, kind, self._memory, part * self._stride)

    def resize(self, size: int) -> None:
        """Let the first `size` bytes of each range be used; the memory of the rest is given back, its contents lost."""
        used = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        for start in range(0, self._parts * self._stride, self._stride):
            self._advise("MADV_HUGEPAGE", start, used)
            self._advise("MADV_NOHUGEPAGE", start + used, self._stride - used)
            self._advise("MADV_DONTNEED", start + used, self._stride - used)

    def _advise(self, advice: str, start: int, length: int) -> None:
        number = getattr(mmap, advice, None)
        if length and number is not None:
            with suppress(OSError):  # it is advice: a system without huge pages knows no such
                self._memory.madvise(number, start, length)
