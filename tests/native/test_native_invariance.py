"""A row's bits depend on its own input only: not on the batch, the chunk, the pages, or the number of threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, Geometry, Pool, chunks, cuts, geometries, lengths, run, tokens

from llmosd.runtime import native
from llmosd.types import KvFormat

pytestmark = pytest.mark.usefixtures("kernels")


def feed(pool: Pool, qkv: Array, borders: list[int], others: list[tuple[Array, int, list[int]]], threads: int) -> Array:
    """The sequence's outputs, fed in chunks, after the `others` in every step."""
    table: list[int] = []
    before = sum(len(rows) for rows, _, _ in others)
    parts = []
    for begin, end in itertools.pairwise(borders):
        pool.grow(table, end)
        parts.append(pool.step([*others, (qkv[begin:end], begin, table)], threads=threads)[before:])
    return np.concatenate(parts)


@settings(max_examples=30, deadline=None)
@given(geometries, lengths, cuts, st.integers(1, 4), st.integers(0, 2**32))
def test_attention(g: Geometry, length: int, fractions: list[float], threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    qkv, other, single = tokens(g, length, rng), tokens(g, 30, rng), tokens(g, 1, rng)
    need = -(-length // g.page_tokens)
    alone = feed(Pool(g, need, seed), qkv, [0, length], [], 1)
    pool = Pool(g, need + 4, seed + 1)
    tables: list[list[int]] = [[], []]
    pool.grow(tables[0], 30)
    pool.grow(tables[1], 1)
    batched = feed(pool, qkv, chunks(length, fractions), [(other, 0, tables[0]), (single, 0, tables[1])], threads)
    assert alone.tobytes() == batched.tobytes()


@pytest.mark.parametrize("page_tokens", [16, 64, 128])
@pytest.mark.parametrize("kv", ["float16", "int8"])
def test_a_long_decode_split_between_threads(page_tokens: int, kv: KvFormat) -> None:
    g = Geometry(3, 1, 64, page_tokens, kv, context=2048)
    qkv = tokens(g, 1101, np.random.default_rng(0))
    pool = Pool(g, -(-1101 // page_tokens))
    table: list[int] = []
    pool.grow(table, 1101)
    prefilled = pool.step([(qkv, 0, table)])[-1:]
    for threads in (1, 2, 3, 8):
        assert pool.step([(qkv[-1:], 1100, table)], threads=threads).tobytes() == prefilled.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 8, 32]), st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), st.integers(1, 4))
def test_linear_rows(bits: int, columns: int, rows: int, blocks: int, threads: int) -> None:
    rng = np.random.default_rng(columns)
    k = 32 * blocks
    x = rng.standard_normal((rows, k), np.float32)
    scales = rng.random((columns, blocks), np.float32)
    op, attributes, weights = "QLinear", {"N": columns, "K": k, "bits": bits}, ()
    if bits == 4:
        weights = native.pack_q4(rng.integers(0, 16, (columns, k), np.uint8), scales, -8 * scales)
    elif bits == 8:
        weights = native.pack_q8(rng.integers(-127, 128, (columns, k), np.int8), scales)
    else:
        op, attributes = "Linear", {"N": columns, "K": k}
        weights = (native.pack_f32(rng.standard_normal((columns, k), np.float32)),)
    together = run(op, [x, *weights], threads=threads, **attributes)
    alone = np.concatenate([run(op, [row[None], *weights], **attributes) for row in x])
    assert together.tobytes() == alone.tobytes()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 70), st.integers(1, 5), st.integers(1, 4))
def test_rows_of_a_product_with_norm_gate_and_residual(
    bits: int, stripes: int, rows: int, blocks: int, threads: int
) -> None:
    rng = np.random.default_rng(rows)
    columns, k = 32 * stripes, 32 * blocks
    x, residual = rng.standard_normal((rows, k), np.float32), rng.standard_normal((rows, columns // 2), np.float32)
    gain, scales = rng.standard_normal(k, np.float32), rng.random((columns, blocks), np.float32)
    if bits == 4:
        weights = native.pack_q4(rng.integers(0, 16, (columns, k), np.uint8), scales, -8 * scales)
    else:
        weights = native.pack_q8(rng.integers(-127, 128, (columns, k), np.int8), scales)
    attributes = {"N": columns, "K": k, "bits": bits, "gated": 1, "epsilon": 1e-6}
    together = run("QLinear", [x, *weights, gain, residual], threads=threads, **attributes)
    each = zip(x, residual, strict=True)
    alone = np.concatenate([run("QLinear", [a[None], *weights, gain, b[None]], **attributes) for a, b in each])
    assert together.tobytes() == alone.tobytes()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4))
def test_swiglu_rows(rows: int, width: int, threads: int) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 2 * width), np.float32)
    alone = np.concatenate([run("SwiGLU", [row[None]]) for row in x])
    assert run("SwiGLU", [x], threads=threads).tobytes() == alone.tobytes()
