"""PagedAttention that need not be exact, where many query rows may be computed in bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, Geometry, Pool, attention_terms, chunks, cuts, lengths, tokens

from llmosd.runtime import native
from llmosd.types import KvFormat

pytestmark = pytest.mark.usefixtures("kernels")

UNIT = 2.0**-8  # what rounding to bfloat16 changes at most, relatively
POWER = 2e-4  # what the cubic of the power of two may be off, in a weight and in their sum
EXACT = 2e-5  # float32's share, as for the exact operator

geometries = st.builds(
    lambda kv_heads, group, size, page, kv: Geometry(kv_heads * group, kv_heads, size, page, kv),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 33]),
    st.sampled_from([32, 64, 96, 128, 256]),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from(["int8", "float16"]),
)


def errors(g: Geometry, qkv: Array, stored: tuple[Array, Array], out: Array) -> tuple[Array, Array, Array]:
    """How far `out` is off, at most and typically may be, all [tokens, heads · size].

    Rounding moves each score by at most E = max Σ |q k| · UNIT, so each weight by a factor of e^2E, and then the weight
    itself by UNIT; keys and values of float16 as much again. Typically those of different elements cancel.
    """
    q, k, v, weights = attention_terms(g, qkv, stored)
    sides = 2 if g.kv == "float16" else 1
    moved = np.exp(2 * sides * UNIT * (np.einsum("qhd,khd->hqk", abs(q), abs(k)) * (weights > 0)).max(-1))
    most = (moved * (1 + sides * UNIT + POWER) - 1).T[..., None] * np.einsum("hqk,khd->qhd", weights, abs(v))
    typical = UNIT * sides * np.sqrt(np.einsum("hqk,khd->qhd", weights**2, v**2))
    off = out.reshape(most.shape) - np.einsum("hqk,khd->qhd", weights, v)
    return off, most + EXACT, typical


@settings(max_examples=40, deadline=None)
@given(geometries, st.lists(st.tuples(lengths, cuts), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 2**32))
def test_any_batch_is_within_the_rounding_of_bfloat16(
    g: Geometry, shapes: list[tuple[int, list[float]]], threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pages = sum(-(-length // g.page_tokens) for length, _ in shapes) + 2
    pool, exact = Pool(g, pages, seed), Pool(g, pages, seed)
    sequences = [(tokens(g, length, rng), chunks(length, fractions)) for length, fractions in shapes]
    for (qkv, _), (out, table) in zip(sequences, pool.feed(sequences, threads=threads, exact=0), strict=True):
        off, most, _ = errors(g, qkv, pool.stored(table, len(qkv)), out)
        assert (abs(off) <= most).all()
    exact.feed(sequences, exact=1)
    assert (pool.keys.tobytes(), pool.values.tobytes()) == (exact.keys.tobytes(), exact.values.tobytes())


@pytest.mark.parametrize("kv", ["int8", "float16"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_errors_cancel_as_those_of_rounding_do(size: int, kv: KvFormat) -> None:
    g = Geometry(6, 2, size, 32, kv)
    qkv = tokens(g, 700, np.random.default_rng(size))
    pool = Pool(g, 22)
    [(out, table)] = pool.feed([(qkv, [0, 256, 512, 700])], threads=2, exact=0)
    off, _, typical = errors(g, qkv, pool.stored(table, len(qkv)), out)
    assert np.sqrt((off**2).mean()) <= np.sqrt((typical**2).mean())


@settings(max_examples=20, deadline=None)
@given(geometries, st.integers(70, 400), st.integers(1, 4), st.integers(0, 2**32))
def test_a_row_has_its_bits_whatever_the_batch_and_the_chunks(
    g: Geometry, length: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    qkv, other = tokens(g, length, rng), tokens(g, 45, rng)
    [(alone, _)] = Pool(g, 60, seed).feed([(qkv, [0, length])], exact=0)
    beside = [(qkv, [0, 33, length]), (other, [0, 45])]
    (batched, _), _ = Pool(g, 60, seed + 1).feed(beside, threads=threads, exact=0)
    assert alone.tobytes() == batched.tobytes()


@pytest.mark.parametrize("kv", ["int8", "float16"])
@pytest.mark.parametrize("slope", [0.1, -0.1, 1, -1, 100, -100])
def test_maxima_may_grow_and_fall(slope: float, kv: KvFormat) -> None:
    """Queries whose scaled elements are powers of two, or zero, so that all scores are exact, over keys that slope."""
    g = Geometry(4, 1, 32, 16, kv)
    count = 600
    qkv = tokens(g, count, np.random.default_rng(0))
    parts = qkv.reshape(count, -1, g.size)
    parts[:, :-1] = 0
    parts[:, :4, 0] = 1 / (g.scale * np.log2(np.e))
    parts[:, 4, 0] = np.exp2(np.floor(np.log2(abs(slope)))) * np.sign(slope) * (np.arange(count) // 4)
    pool = Pool(g, 38)
    table: list[int] = []
    pool.grow(table, count)
    still = {"cos": np.ones((1024, 16), np.float32), "sin": np.zeros((1024, 16), np.float32)}
    out = pool.step([(qkv, 0, table)], exact=0, **still)
    keys, values = (x[:, 0] for x in pool.stored(table, count))
    scores = np.where(np.tri(count, dtype=bool), keys[:, 0] * np.log(2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    sides = 2 if kv == "float16" else 1
    most = (sides * UNIT + POWER + 1e-6 * abs(scores[-1]).max()) * weights @ abs(values) + EXACT
    assert (abs(out.reshape(count, 4, 32) - (weights @ values)[:, None]) <= most[:, None]).all()


@pytest.mark.parametrize("size", [1e-38, 1e30, np.inf, np.nan])
def test_int8_survives_any_value(size: float) -> None:
    """What is not finite harms its own sequence only."""
    g = Geometry(4, 1, 32, 16, "int8")
    rng = np.random.default_rng(0)
    qkv, other = tokens(g, 60, rng), tokens(g, 40, rng)
    qkv[50, 4 * g.size :] = np.where(np.arange(2 * g.size) % 2, size, 0)
    (out, _), (beside, _) = Pool(g, 9).feed([(qkv, [0, 60]), (other, [0, 40])], exact=0)
    [(alone, _)] = Pool(g, 9).feed([(other, [0, 40])], exact=0)
    assert beside.tobytes() == alone.tobytes()
    assert np.isfinite(out).all() == np.isfinite(size)


def test_float32_pages_and_heads_that_no_tile_divides_stay_exact() -> None:
    for g in (Geometry(3, 1, 64, 32, "float32"), Geometry(3, 1, 48, 32, "int8")):
        qkv = tokens(g, 100, np.random.default_rng(0))
        results = [Pool(g, 4).feed([(qkv, [0, 100])], exact=exact)[0][0].tobytes() for exact in (0, 1)]
        assert results[0] == results[1]


def test_it_is_computed_otherwise_where_there_are_tiles(kernels: str) -> None:
    g = Geometry(3, 1, 64, 32, "int8")
    qkv = tokens(g, 100, np.random.default_rng(0))
    rounded, exact = (Pool(g, 4).feed([(qkv, [0, 100])], exact=exact)[0][0] for exact in (0, 1))
    assert np.array_equal(rounded, exact) == (native.status().isa != "amx" or kernels != "amx")
