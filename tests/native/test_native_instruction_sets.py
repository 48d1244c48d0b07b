"""The sets of kernels in one library: which of them this processor runs, and that they agree."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, run

from llmosd.runtime import native
from llmosd.runtime.native import build as recipe
from llmosd.runtime.native import selftest


@pytest.fixture
def runnable() -> Iterator[list[str]]:
    """The sets that this processor can run; afterwards the one in use before is so again."""
    yield loaded().llmos_instruction_sets().decode().split()
    use(native.status().isa)


def loaded() -> ctypes.CDLL:
    path = native.status().path
    assert path is not None
    return native.load(path)


def use(isa: str) -> bool:
    return bool(loaded().llmos_use_kernels(isa.encode()))


def test_a_processor_runs_some_of_the_compiled_sets(runnable: list[str]) -> None:
    assert [isa for isa in recipe.instruction_sets() if isa in runnable] == runnable
    assert runnable[-1] == "portable"
    assert native.status().isa == runnable[0]
    assert all(use(isa) for isa in runnable)
    assert not any(use(isa) for isa in recipe.instruction_sets().keys() - set(runnable))


def quantised(bits: int, x: Array, codes: Array, scales: Array) -> Array:
    packed = native.pack_q8(codes, scales) if bits == 8 else native.pack_q4(codes, scales, -8 * scales)
    return run("QLinear", [x, *packed], N=len(codes), K=x.shape[1], bits=bits)


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 40), blocks=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_all_sets_sum_integers_exactly(bits: int, rows: int, blocks: int, seed: int) -> None:
    """Also weights of -128, whose magnitude no int8 holds, and whole blocks of extreme codes."""
    rng = np.random.default_rng(seed)
    low, high = (-128, 127) if bits == 8 else (0, 15)
    codes = rng.integers(low, high + 1, (11, 32 * blocks)).astype(np.int8 if bits == 8 else np.uint8)
    codes[0], codes[1] = low, high
    x = rng.integers(-127, 128, (rows, 32 * blocks)).astype(np.float32)
    x[:, ::32], x[0] = 127, rng.choice([-127, 127])
    expected = x @ (codes.T - np.float32(0 if bits == 8 else 8))
    for isa in loaded().llmos_instruction_sets().decode().split():
        assert use(isa)
        np.testing.assert_array_equal(quantised(bits, x, codes, np.ones((11, blocks), np.float32)), expected)
    use(native.status().isa)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(16, 2), (37, 10), (72, 18), (8, 49), (24, 99)])
def test_every_row_count_has_the_bits_of_avx2(bits: int, shape: tuple[int, int], runnable: list[str]) -> None:
    """Whichever tiles a set cuts its rows into, and on blocks that it does not keep at hand all at once."""
    sets = [isa for isa in runnable if isa in ("amx", "avx512vnni", "avxvnni", "avx2")]
    if len(sets) < 2:
        pytest.skip("this processor has no VNNI")
    columns, blocks = shape
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((51, 32 * blocks)).astype(np.float32)
    scales = rng.uniform(0.001, 0.1, (columns, blocks)).astype(np.float32)
    low, high = (-128, 127) if bits == 8 else (0, 15)
    codes = rng.integers(low, high + 1, (columns, 32 * blocks)).astype(np.int8 if bits == 8 else np.uint8)
    use("avx2")
    expected = quantised(bits, x, codes, scales)
    for isa in sets:
        use(isa)
        for rows in range(1, len(x) + 1):
            assert quantised(bits, x[:rows], codes, scales).tobytes() == expected[:rows].tobytes(), (isa, rows)


def test_no_set_that_passes_is_said_of_each(monkeypatch: pytest.MonkeyPatch, runnable: list[str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(selftest, "TOLERANCE", -1.0)
        found = native.status.__wrapped__()
    assert not found.available
    assert all(f"{isa}: the self-test's numbers are off" in found.why for isa in runnable)
