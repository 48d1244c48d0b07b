"""Whole pages as plain bytes: into one buffer and out of it, and a checksum of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from ctypes import CDLL, c_void_p
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime import native

Bytes = NDArray[np.uint8]


class PageBytes(Protocol):
    """Pages that lie in many arrays, each with the same number of bytes of every page."""

    size: int  # of a page, in bytes

    def gather(self, page: int, buffer: Bytes) -> None:
        """A page's bytes to the beginning of a buffer."""

    def scatter(self, page: int, buffer: Bytes) -> None:
        """What `gather` gave, to this or another page."""


class NumpyPageBytes:
    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Contiguous arrays, pages along their first dimension."""
        self._arrays = [array.reshape(len(array), -1).view(np.uint8) for array in arrays]
        self.size = sum(array.shape[1] for array in self._arrays)

    def gather(self, page: int, buffer: Bytes) -> None:
        np.concatenate([array[page] for array in self._arrays], out=buffer[: self.size])

    def scatter(self, page: int, buffer: Bytes) -> None:
        for array, part in zip(self._arrays, buffer[: self.size].reshape(len(self._arrays), -1), strict=True):
            array[page] = part


class NativePageBytes:
    """One call a page, and other threads run meanwhile: numpy would take the interpreter's lock for each array."""

    def __init__(self, library: CDLL, arrays: Sequence[NDArray[Any]]) -> None:
        """As numpy's, of one size each."""
        part = arrays[0][0].nbytes
        assert all(array.flags.c_contiguous and array[0].nbytes == part for array in arrays)
        self.size = part * len(arrays)
        self._pages = len(arrays[0])
        self._gather, self._scatter = library.llmos_gather_page, library.llmos_scatter_page
        self._arrays = arrays  # to keep them alive
        self._parts = (c_void_p * len(arrays))(*[array.ctypes.data for array in arrays]), len(arrays), part

    def gather(self, page: int, buffer: Bytes) -> None:
        self._check(page, buffer)
        self._gather(*self._parts, page, buffer.ctypes.data)

    def scatter(self, page: int, buffer: Bytes) -> None:
        self._check(page, buffer)
        self._scatter(*self._parts, page, buffer.ctypes.data)

    def _check(self, page: int, buffer: Bytes) -> None:
        assert 0 <= page < self._pages and buffer.size >= self.size and buffer.flags.c_contiguous


def best_page_bytes(arrays: Sequence[NDArray[Any]]) -> PageBytes:
    """The native one if it works here."""
    library = _library()
    return NativePageBytes(library, arrays) if library else NumpyPageBytes(arrays)


def best_checksum() -> Callable[[Bytes], int]:
    """A checksum of a contiguous buffer of a multiple of 32 bytes: XXH64, or CRC-32 without the native library.

    For a page of 1.5 MB in cache XXH64 takes 0.10 ms; zlib's CRC-32 takes 0.28, Adler-32 0.8, BLAKE2b 3.3.
    """
    library = _library()
    if library is None:
        return lambda buffer: zlib.crc32(buffer.data)
    xxh64: Callable[[int, int], int] = library.llmos_xxh64
    return lambda buffer: xxh64(buffer.ctypes.data, buffer.size)


def _library() -> CDLL | None:
    found = native.status()
    return native.load(found.path) if found.available and found.path else None
