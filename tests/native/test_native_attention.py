"""PagedAttention against float64, on ragged batches over shuffled pages whose unused slots hold NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, Geometry, Pool, attention_reference, chunks, cuts, geometries, lengths, tokens

pytestmark = pytest.mark.usefixtures("kernels")

# Largest error against float64 on standard normal inputs, whose values reach about 4. Float32: rounding of sums of up
# to 256 products and of the exponential. Float16: a key on a rounding border may be stored one unit (2^-11) apart.
BOUND = {False: 2e-5, True: 4e-3}


@settings(max_examples=40, deadline=None)
@given(geometries, st.lists(st.tuples(lengths, cuts), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 2**32))
def test_any_batch_matches_float64(g: Geometry, shapes: list[tuple[int, list[float]]], threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = Pool(g, sum(-(-length // g.page_tokens) for length, _ in shapes) + 2, seed)
    sequences = [(tokens(g, length, rng), chunks(length, fractions)) for length, fractions in shapes]
    tables: list[list[int]] = [[] for _ in sequences]
    outputs: list[list[Array]] = [[] for _ in sequences]
    for i in range(max(len(borders) for _, borders in sequences) - 1):
        live = [n for n, (_, borders) in enumerate(sequences) if i + 1 < len(borders)]
        for n in live:
            pool.grow(tables[n], sequences[n][1][i + 1])
        spans = [(sequences[n][0], sequences[n][1][i], sequences[n][1][i + 1], tables[n]) for n in live]
        out = pool.step([(qkv[begin:end], begin, table) for qkv, begin, end, table in spans], threads=threads)
        for n, part in zip(
            live, np.split(out, np.cumsum([end - begin for _, begin, end, _ in spans])[:-1]), strict=True
        ):
            outputs[n].append(part)
    for (qkv, _), parts in zip(sequences, outputs, strict=True):
        assert np.abs(np.concatenate(parts) - attention_reference(g, qkv)).max() <= BOUND[g.half]


@settings(max_examples=15, deadline=None)
@given(geometries, lengths, st.integers(0, 2**32))
def test_only_the_new_slots_are_written(g: Geometry, length: int, seed: int) -> None:
    pool = Pool(g, -(-length // g.page_tokens) + 2, seed)
    table: list[int] = []
    pool.grow(table, length)
    qkv = tokens(g, length, np.random.default_rng(seed))
    pool.step([(qkv, 0, table)], threads=2)
    parts = qkv.reshape(length, -1, g.size)
    keys = g.rotate(parts[:, g.heads : -g.kv_heads], np.arange(length))
    slots = [(table[i // g.page_tokens], i % g.page_tokens) for i in range(length)]
    for i, (page, slot) in enumerate(slots):
        np.testing.assert_allclose(pool.keys[page, :, :, slot], keys[i], rtol=1e-3 if g.half else 1e-6, atol=1e-5)
        np.testing.assert_array_equal(pool.values[page, :, slot], parts[i, -g.kv_heads :].astype(pool.values.dtype))
    written = np.zeros((pool.pages, g.page_tokens), bool)
    written[tuple(np.transpose(slots))] = True
    assert np.isnan(pool.values.swapaxes(1, 2)[~written]).all()
    assert np.isnan(pool.keys.transpose(0, 3, 1, 2)[~written]).all()


def test_a_large_score_leaves_a_finite_result() -> None:
    g = Geometry(2, 1, 64, 16)
    pool = Pool(g, 20)
    table: list[int] = []
    pool.grow(table, 300)
    qkv = tokens(g, 300, np.random.default_rng(0))
    qkv[:, : 3 * g.size] *= 100
    out = pool.step([(qkv, 0, table)])
    # Scores reach 1e5, where float32 has steps of 0.008: weights are off by that much at most, for values below 5.
    assert np.abs(out - attention_reference(g, qkv)).max() <= 0.1


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
