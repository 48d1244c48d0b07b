"""The swap file on a real file system: what it keeps, and what it says when the disk does not."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmosd.errors import ConfigError
from llmosd.runtime.page_bytes import Bytes
from llmosd.runtime.swap_file import ALIGNMENT, SwapFile, slot_bytes

SLOTS, PAGE_BYTES = 8, 10_000


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SwapFile]:
    file = SwapFile(tmp_path, SLOTS, PAGE_BYTES)
    yield file
    file.close()


def page(file: SwapFile, seed: int) -> Bytes:
    buffer = file.buffer()
    buffer[:] = np.random.default_rng(seed).integers(0, 256, buffer.size, np.uint8)
    return buffer


def read(file: SwapFile, slot: int) -> Bytes:
    buffer = file.buffer()
    file.read(slot, buffer)
    return buffer[:PAGE_BYTES]


def test_slots_keep_what_was_written_last(file: SwapFile) -> None:
    for seed, slot in enumerate((3, 0, 7, 3, 5, 0)):
        file.write(slot, page(file, seed))
    for slot, seed in ((3, 3), (0, 5), (7, 2), (5, 4)):
        assert np.array_equal(read(file, slot), page(file, seed)[:PAGE_BYTES])


def test_the_file_is_private_nameless_and_takes_room_as_it_is_used(file: SwapFile, tmp_path: Path) -> None:
    found = os.fstat(file.fileno())
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_nlink, list(tmp_path.iterdir())) == (0, [])
    assert found.st_size == SLOTS * slot_bytes(PAGE_BYTES) == SLOTS * 3 * ALIGNMENT
    assert found.st_blocks == 0
    file.write(2, page(file, 0))
    assert os.fstat(file.fileno()).st_blocks * 512 <= 2 * slot_bytes(PAGE_BYTES)


def test_a_slot_that_was_never_written_holds_nothing(file: SwapFile) -> None:
    with pytest.raises(OSError, match="slot 1 holds nothing"):
        read(file, 1)


@pytest.mark.parametrize("place", [0, PAGE_BYTES // 2, PAGE_BYTES - 1])
def test_a_flipped_bit_is_noticed(file: SwapFile, place: int) -> None:
    file.write(2, page(file, 0))
    file.write(3, page(file, 1))
    with open(f"/proc/self/fd/{file.fileno()}", "r+b", buffering=0) as other:  # noqa: PTH123 - a name for a nameless file
        at = 2 * slot_bytes(PAGE_BYTES) + place
        (byte,) = os.pread(other.fileno(), 1, at)
        os.pwrite(other.fileno(), bytes([byte ^ 16]), at)
    with pytest.raises(OSError, match="slot 2 holds other bytes"):
        read(file, 2)
    assert np.array_equal(read(file, 3), page(file, 1)[:PAGE_BYTES])
    file.write(2, page(file, 4))
    assert np.array_equal(read(file, 2), page(file, 4)[:PAGE_BYTES])


def test_a_page_in_the_wrong_slot_is_noticed(file: SwapFile) -> None:
    for slot in (0, 1):
        file.write(slot, page(file, slot))
    with open(f"/proc/self/fd/{file.fileno()}", "r+b", buffering=0) as other:  # noqa: PTH123
        os.pwrite(other.fileno(), os.pread(other.fileno(), PAGE_BYTES, 0), slot_bytes(PAGE_BYTES))
    with pytest.raises(OSError, match="slot 1 holds other bytes"):
        read(file, 1)


def test_a_truncated_file_is_noticed(file: SwapFile) -> None:
    for slot in (0, 4):
        file.write(slot, page(file, slot))
    os.ftruncate(file.fileno(), 4 * slot_bytes(PAGE_BYTES) + 100)
    with pytest.raises(OSError, match="slot 4 gave 100 of 12288 bytes"):
        read(file, 4)
    assert np.array_equal(read(file, 0), page(file, 0)[:PAGE_BYTES])


def become(file: SwapFile, path: str) -> None:
    """Let the swap file's descriptor be that of another file."""
    other = os.open(path, os.O_RDWR)
    os.dup2(other, file.fileno())
    os.close(other)


def test_a_full_disk_is_an_error_and_leaves_the_slot_empty(file: SwapFile) -> None:
    file.write(1, page(file, 0))
    become(file, "/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        file.write(1, page(file, 1))
    with pytest.raises(OSError, match="slot 1 holds nothing"):
        read(file, 1)


def test_an_input_output_error_is_an_error(file: SwapFile) -> None:
    file.write(0, page(file, 0))
    become(file, "/proc/self/mem")  # nothing is mapped at its beginning
    with pytest.raises(OSError, match="Input/output error"):
        read(file, 0)
    with pytest.raises(OSError, match="Input/output error"):
        file.write(0, page(file, 0))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two slots."""
    size = 2 * slot_bytes(PAGE_BYTES)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills_up_keeps_what_it_took(small_disk: Path) -> None:
    file = SwapFile(small_disk, SLOTS, PAGE_BYTES)
    for slot in (0, 1):
        file.write(slot, page(file, slot))
    with pytest.raises(OSError, match=r"No space left on device|took \d+ of"):
        file.write(2, page(file, 2))
    for slot in (0, 1):
        assert np.array_equal(read(file, slot), page(file, slot)[:PAGE_BYTES])
    file.close()


def test_without_a_place_for_the_file_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory") as error:
        SwapFile(tmp_path / "nowhere", SLOTS, PAGE_BYTES)
    assert error.value.param == "swap"
