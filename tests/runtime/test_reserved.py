"""Memory that comes with writing and goes when it is given back, at addresses that stay."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.page_pool import HostPool
from llmosd.runtime.reserved import Reserved

MIB = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_arrays_are_apart_and_keep_what_is_kept() -> None:
    reserved = Reserved(2, 10_000)
    one, two = (reserved.array(part, np.dtype("uint8"), (10, 1000)) for part in range(2))
    one[:], two[:] = 1, 2
    assert (one == 1).all()
    reserved.resize(5000)
    assert (one[:5] == 1).all()
    assert (two[:5] == 2).all()
    one[:] = 3
    assert (one == 3).all()
    assert (two[:5] == 2).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system gives memory back when it likes")
def test_a_pool_takes_memory_as_it_is_used_and_gives_it_back() -> None:
    geometry = Geometry(4, 64, 4, 4, 64, 128, 256, 4096, 1e4, 1e-5, 0, (1,))
    pool = HostPool(geometry, pages=100_000, page_tokens=256, kv_format="float16")  # of 1 MiB: far more than there is
    addresses = [array.ctypes.data for _, array in pool.inputs()]
    pool.resize(200)
    before = resident()

    def write(pages: int) -> None:
        for _, array in pool.inputs():
            array[:pages] = 1

    def holds(pages: int) -> bool:
        return pages - 8 < (resident() - before) / MIB < pages + 24

    write(200)
    assert holds(200)
    pool.resize(50)
    assert holds(50)
    assert all(array[:50].all() for _, array in pool.inputs())
    assert not any(array[50:200].any() for _, array in pool.inputs())
    pool.resize(100)
    write(100)
    assert holds(100)
    assert [array.ctypes.data for _, array in pool.inputs()] == addresses
    pool.clear()
    assert holds(0)
