"""Sessions of one process, each with a pool, a thread count and a geometry of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from native_operators import Array, Geometry, Pool, run, tokens

from llmosd.runtime import native

pytestmark = pytest.mark.usefixtures("kernels")


def test_sessions_share_the_process() -> None:
    """Run from several threads at once, each gives what it gives alone."""
    rng = np.random.default_rng(0)
    float16, int8 = Geometry(9, 3, 64, 64, kv="float16"), Geometry(4, 4, 128, 16, kv="int8")
    rows = {g: tokens(g, 200, rng) for g in (float16, int8)}
    x = rng.standard_normal((40, 96), np.float32)
    weight = native.pack_q8(rng.integers(-127, 128, (50, 96), np.int8), np.full((50, 3), 0.01, np.float32))

    def attend(g: Geometry, threads: int) -> Array:
        pool, table = Pool(g, 16), list[int]()
        pool.grow(table, 200)
        return pool.step([(rows[g], 0, table)], threads=threads)

    def once(i: int) -> bytes:
        if i % 3 == 2:
            return run("QLinear", [x, *weight], threads=4, N=50, K=96, bits=8).tobytes()
        return (attend(int8, 3) if i % 3 else attend(float16, 2)).tobytes()

    expected = [once(i) for i in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(once, range(24))):
            assert result == expected[i % 3]
