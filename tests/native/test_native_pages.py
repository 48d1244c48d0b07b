"""Pages as bytes: the native library does what numpy does, and its checksum is the published one."""

from __future__ import annotations

from ctypes import CDLL

import numpy as np
import pytest

from llmosd.runtime import native
from llmosd.runtime.page_bytes import Bytes, NativePageBytes, NumpyPageBytes


@pytest.fixture(scope="module")
def library() -> CDLL:
    found = native.status()
    if not (found.available and found.path):
        pytest.skip(found.why)
    return native.load(found.path)


def test_native_and_numpy_move_the_same_bytes(library: CDLL) -> None:
    draw = np.random.default_rng(0)
    arrays = [draw.integers(-128, 128, (7, 3, 17, 5), np.int8) for _ in range(6)]
    ours, theirs = NativePageBytes(library, arrays), NumpyPageBytes(arrays)
    assert ours.size == theirs.size == 6 * 3 * 17 * 5
    one, other = np.zeros(2000, np.uint8), np.zeros(2000, np.uint8)
    for page in (0, 3, 6):
        ours.gather(page, one)
        theirs.gather(page, other)
        assert np.array_equal(one, other)
    before = [array.copy() for array in arrays]
    for mover, page in ((ours, 1), (theirs, 2)):
        mover.scatter(page, one)
        for array, old in zip(arrays, before, strict=True):
            assert np.array_equal(array[page], old[6])
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array[[0, 3, 4, 5, 6]], old[[0, 3, 4, 5, 6]])


def xxh64(data: Bytes) -> int:
    """As its specification words it, for a multiple of 32 bytes."""
    one, two, three, four = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63

    def rotated(value: int, bits: int) -> int:
        value %= 2**64
        return (value << bits | value >> (64 - bits)) % 2**64

    def turn(lane: int, word: int) -> int:
        return rotated(lane + word * two, 31) * one % 2**64

    lanes = [one + two, two, 0, -one]
    for words in data.view("<u8").reshape(-1, 4).tolist():
        lanes = [turn(lane, word) for lane, word in zip(lanes, words, strict=True)]
    total = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    for lane in lanes:
        total = (total ^ turn(0, lane)) * one + four
    total = (total + len(data)) % 2**64
    total = (total ^ total >> 33) * two % 2**64
    total = (total ^ total >> 29) * three % 2**64
    return total ^ total >> 32


@pytest.mark.parametrize("size", [32, 64, 4096, 12320])
def test_the_checksum_is_xxh64(library: CDLL, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert library.llmos_xxh64(data.ctypes.data, size) == xxh64(data)


def test_the_checksum_has_the_published_value(library: CDLL) -> None:
    """That of 32 bytes of which the n-th is n."""
    data = np.arange(32, dtype=np.uint8)
    assert library.llmos_xxh64(data.ctypes.data, 32) == 0xCBF59C5116FF32B4
