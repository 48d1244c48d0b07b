"""PagedAttention against float64, on ragged batches over shuffled pages whose unused slots hold NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import (
    Array,
    Geometry,
    Pool,
    attention_reference,
    chunks,
    cuts,
    geometries,
    keys_and_values,
    lengths,
    tokens,
)

pytestmark = pytest.mark.usefixtures("kernels")

# Largest error against float64 over the K and V in the pool, on standard normal inputs, whose values reach about 4:
# rounding of sums of up to 256 products and of the exponential.
BOUND = 2e-5


def assert_stored(g: Geometry, exact: Array, stored: Array) -> None:
    """What is stored of keys or values is at most half a unit off, and a key's rotation is rounded in float32."""
    peak = np.abs(exact).max(axis=-1, keepdims=True)
    half = {"float32": 0 * exact, "float16": np.abs(exact) * 2.0**-11, "int8": peak / 254}[g.kv]
    assert (np.abs(stored - exact) <= half + 1e-6 * peak).all()


@settings(max_examples=40, deadline=None)
@given(geometries, st.lists(st.tuples(lengths, cuts), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 2**32))
def test_any_batch_matches_float64(g: Geometry, shapes: list[tuple[int, list[float]]], threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = Pool(g, sum(-(-length // g.page_tokens) for length, _ in shapes) + 2, seed)
    sequences = [(tokens(g, length, rng), chunks(length, fractions)) for length, fractions in shapes]
    for (qkv, _), (out, table) in zip(sequences, pool.feed(sequences, threads=threads), strict=True):
        stored = pool.stored(table, len(qkv))
        for exact, kept in zip(keys_and_values(g, qkv), stored, strict=True):
            assert_stored(g, exact, kept)
        assert np.abs(out - attention_reference(g, qkv, stored)).max() <= BOUND


@settings(max_examples=15, deadline=None)
@given(geometries, lengths, st.integers(0, 2**32))
def test_only_the_new_slots_are_written(g: Geometry, length: int, seed: int) -> None:
    pool = Pool(g, -(-length // g.page_tokens) + 2, seed)
    table: list[int] = []
    pool.grow(table, length)
    qkv = tokens(g, length, np.random.default_rng(seed))
    pool.step([(qkv, 0, table)], threads=2)
    written = np.zeros((pool.pages, g.page_tokens), bool)
    for i in range(length):
        written[table[i // g.page_tokens], i % g.page_tokens] = True
    for exact, kept, contents in zip(keys_and_values(g, qkv), pool.stored(table, length), pool.contents(), strict=True):
        assert_stored(g, exact, kept)
        assert np.isnan(contents[~written]).all()


@pytest.mark.parametrize("size", [1e-38, 1e30, np.inf, np.nan])
def test_int8_survives_any_value(size: float) -> None:
    """What is not finite harms its own sequence only."""
    g = Geometry(2, 1, 32, 16, "int8")
    pool = Pool(g, 3)
    rng = np.random.default_rng(0)
    qkv, other = tokens(g, 5, rng), tokens(g, 5, rng)
    qkv[2, 2 * g.size :] = np.where(np.arange(2 * g.size) % 2, size, 0)
    out = pool.step([(qkv, 0, [1]), (other, 0, [2])])
    alone = Pool(g, 1).step([(other, 0, [0])])
    assert out[5:].tobytes() == alone.tobytes()
    assert np.isfinite(out[:5]).all() == np.isfinite(size)


def test_a_large_score_leaves_a_finite_result() -> None:
    g = Geometry(2, 1, 64, 16)
    pool = Pool(g, 20)
    table: list[int] = []
    pool.grow(table, 300)
    qkv = tokens(g, 300, np.random.default_rng(0))
    qkv[:, : 3 * g.size] *= 100
    out = pool.step([(qkv, 0, table)])
    # Scores reach 1e5, where float32 has steps of 0.008: weights are off by that much at most, for values below 5.
    assert np.abs(out - attention_reference(g, qkv, pool.stored(table, 300))).max() <= 0.1


@pytest.mark.parametrize("count", [0, 1])
def test_sequences_without_tokens_are_skipped(count: int) -> None:
    g = Geometry(3, 1, 32, 16)
    pool = Pool(g, 4)
    rng = np.random.default_rng(0)
    empty, one = tokens(g, 0, rng), tokens(g, count, rng)
    out = pool.step([(empty, 999999, []), (one, 0, [2]), (empty, 0, [])])
    assert out.shape == (count, 3 * 32)
    if count:
        np.testing.assert_allclose(out.reshape(3, 32), np.tile(one[0, -32:], (3, 1)), rtol=1e-6)
