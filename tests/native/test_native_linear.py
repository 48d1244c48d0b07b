"""QLinear, Linear and SwiGLU against float64, with bounds that follow from the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, run

from llmosd.runtime import native

pytestmark = pytest.mark.usefixtures("kernels")

EPSILON = 2.0**-24  # half a unit in the last place of float32

shapes = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 70))  # rows, blocks of 32, columns
seeds = st.integers(0, 2**32)


def quantised_weights(
    bits: int, columns: int, blocks: int, rng: np.random.Generator
) -> tuple[tuple[Array, Array], Array]:
    """Packed weights and what they mean in float64."""
    k = 32 * blocks
    scales = rng.uniform(0.001, 0.1, (columns, blocks)).astype(np.float16).astype(np.float32)
    if bits == 8:
        codes = rng.integers(-127, 128, (columns, k), np.int8)
        return native.pack_q8(codes, scales), codes * np.repeat(scales, 32, 1).astype(np.float64)
    minima = rng.uniform(-1, 0, (columns, blocks)).astype(np.float16).astype(np.float32)
    four = rng.integers(0, 16, (columns, k), np.uint8)
    meant = four * np.repeat(scales, 32, 1).astype(np.float64) + np.repeat(minima, 32, 1)
    return native.pack_q4(four, scales, minima), meant


def activations(rows: int, blocks: int, rng: np.random.Generator) -> Array:
    """Rows of very different size."""
    return (rng.standard_normal((rows, 32 * blocks)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)


def int8_rounding(x: Array, weight: Array) -> Array:
    """How far products are off at most where each block of x is rounded to 8 bits."""
    steps = np.repeat(np.abs(x.reshape(len(x), -1, 32)).max(-1) / 127, 32, axis=1).astype(np.float64)
    return (steps / 2 * 1.001) @ np.abs(weight).T


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 8]), shapes, st.integers(1, 4), seeds)
def test_qlinear_is_within_the_rounding_of_its_activations(
    bits: int, shape: tuple[int, int, int], threads: int, seed: int
) -> None:
    rows, blocks, columns = shape
    rng = np.random.default_rng(seed)
    x = activations(rows, blocks, rng)
    packed, weight = quantised_weights(bits, columns, blocks, rng)
    y = run("QLinear", [x, *packed], threads=threads, N=columns, K=32 * blocks, bits=bits)
    bound = int8_rounding(x, weight) + 64 * EPSILON * blocks * (np.abs(x) @ np.abs(weight).T + 1e-30)
    # A 4-bit weight's code and minimum are rounded apart, so their magnitudes count rather than the weight's.
    slack = 1e-5 * (np.abs(x).sum(-1, keepdims=True) * 3)
    assert (np.abs(y - x.astype(np.float64) @ weight.T) <= bound + slack).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 8]), shapes, seeds)
def test_qlinear_is_exact_but_for_float32_sums(bits: int, shape: tuple[int, int, int], seed: int) -> None:
    """On integers up to 127 with a 127 in each block the activations' codes are exact, and so are all products."""
    rows, blocks, columns = shape
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (rows, 32 * blocks)).astype(np.float32)
    x[:, ::32] = 127
    packed, weight = quantised_weights(bits, columns, blocks, rng)
    y = run("QLinear", [x, *packed], N=columns, K=32 * blocks, bits=bits)
    magnitude = np.abs(x) @ (np.abs(weight).T + (2 if bits == 4 else 0))
    assert (np.abs(y - x.astype(np.float64) @ weight.T) <= 4 * (blocks + 2) * EPSILON * magnitude).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_codes_do_not_overflow(bits: int, sign: int) -> None:
    columns, blocks = 9, 48
    codes = np.full((columns, 32 * blocks), 15 if bits == 4 else 127, np.uint8)
    ones = np.ones((columns, blocks), np.float32)
    packed = native.pack_q4(codes, ones, 0 * ones) if bits == 4 else native.pack_q8(codes.view(np.int8), ones)
    x = np.full((5, 32 * blocks), sign * 127.0, np.float32)
    y = run("QLinear", [x, *packed], N=columns, K=32 * blocks, bits=bits)
    np.testing.assert_array_equal(y, float(sign * 127 * int(codes[0, 0]) * 32 * blocks))


many_rows = st.tuples(st.integers(32, 100), st.integers(1, 30), st.integers(1, 70))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 8]), many_rows, st.integers(1, 4), seeds)
def test_what_need_not_be_exact_is_within_the_rounding_of_bfloat16_or_int8(
    bits: int, shape: tuple[int, int, int], threads: int, seed: int
) -> None:
    rows, blocks, columns = shape
    rng = np.random.default_rng(seed)
    x = activations(rows, blocks, rng)
    packed, weight = quantised_weights(bits, columns, blocks, rng)
    shape_of = {"N": columns, "K": 32 * blocks, "bits": bits, "exact": 0}
    y = run("QLinear", [x, *packed], threads=threads, **shape_of)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight).T
    rounding = np.maximum(2.01 * 2.0**-8 * magnitude, int8_rounding(x, weight))
    sums = 64 * EPSILON * blocks * magnitude + 1e-5 * 3 * np.abs(x).sum(-1, keepdims=True)
    assert (np.abs(y - x.astype(np.float64) @ weight.T) <= rounding + sums).all()
    some = run("QLinear", [x[-32:], *packed], threads=1, **shape_of)
    assert some.tobytes() == y[-32:].tobytes(), "a row's bits depend on its place among many"


fused = st.tuples(st.sampled_from([1, 3, 16, 33, 70]), st.integers(1, 6), st.integers(1, 4))  # rows, blocks, 32 columns


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 8]), fused, st.integers(1, 3), seeds)
def test_a_norm_comes_before_the_product(bits: int, shape: tuple[int, int, int], threads: int, seed: int) -> None:
    rows, blocks, columns = shape[0], shape[1], 32 * shape[2] - 5
    rng = np.random.default_rng(seed)
    x, gain = activations(rows, blocks, rng), rng.uniform(-2, 2, 32 * blocks).astype(np.float32)
    packed, weight = quantised_weights(bits, columns, blocks, rng)
    shape_of = {"N": columns, "K": 32 * blocks, "bits": bits}
    y = run("QLinear", [x, *packed, gain], threads=threads, epsilon=1e-5, **shape_of)
    normed = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * gain
    magnitude = np.abs(normed) @ np.abs(weight).T + 3e-5 * np.abs(normed).sum(-1, keepdims=True)
    bound = int8_rounding(normed, weight) + 64 * EPSILON * (blocks + 4) * magnitude
    slack = 1e-5 * (np.abs(normed).sum(-1, keepdims=True) * 3)
    assert (np.abs(y - normed @ weight.T) <= bound + slack).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 8]), st.sampled_from([0, 1]), fused, st.integers(1, 3), seeds)
def test_a_gate_and_a_residual_come_after_it_as_they_would_alone(
    bits: int, exact: int, shape: tuple[int, int, int], threads: int, seed: int
) -> None:
    rows, blocks, columns = shape[0], shape[1], 32 * shape[2]
    rng = np.random.default_rng(seed)
    x = activations(rows, blocks, rng)
    packed, _ = quantised_weights(bits, columns, blocks, rng)
    shape_of = {"N": columns, "K": 32 * blocks, "bits": bits, "exact": exact}
    plain = run("QLinear", [x, *packed], threads=threads, **shape_of)
    residual = rng.standard_normal(plain.shape, np.float32)
    y = run("QLinear", [x, *packed, None, residual], threads=threads, **shape_of)
    assert y.tobytes() == (plain + residual).tobytes()
    stripes = plain.reshape(rows, -1, 2, 16)
    gate_up = np.concatenate([stripes[:, :, part].reshape(rows, -1) for part in (0, 1)], axis=1)
    gated = run("SwiGLU", [gate_up], threads=1)
    y = run("QLinear", [x, *packed], threads=threads, gated=1, **shape_of)
    assert y.tobytes() == gated.tobytes()
    half = residual[:, : columns // 2].copy()
    y = run("QLinear", [x, *packed, None, half], threads=threads, gated=1, **shape_of)
    assert y.tobytes() == (gated + half).tobytes()


@pytest.mark.parametrize("exact", [0, 1])
def test_more_rows_than_wait_aside_at_once(exact: int) -> None:
    rng = np.random.default_rng(0)
    x, gain = rng.standard_normal((1100, 64), np.float32), rng.standard_normal(64, np.float32)
    packed, _ = quantised_weights(4, 64, 2, rng)
    shape_of = {"N": 64, "K": 64, "bits": 4, "exact": exact, "gated": 1, "epsilon": 1e-5}
    whole = run("QLinear", [x, *packed, gain], threads=2, **shape_of)
    parts = [run("QLinear", [part.copy(), *packed, gain], **shape_of) for part in np.split(x, 10)]
    assert whole.tobytes() == np.concatenate(parts).tobytes()


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 4), seeds)
def test_linear_matches_float64(shape: tuple[int, int, int], threads: int, seed: int) -> None:
    rows, blocks, columns = shape
    k = 32 * blocks - seed % 32
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((rows, k), np.float32), rng.standard_normal((columns, k), np.float32)
    y = run("Linear", [x, native.pack_f32(weight)], threads=threads, N=columns, K=k)
    bound = 2 * k * EPSILON * (np.abs(x).astype(np.float64) @ np.abs(weight).T)
    assert (np.abs(y - x.astype(np.float64) @ weight.T) <= bound).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(1, 40), st.integers(1, 4), seeds)
def test_swiglu_matches_float64(rows: int, width: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 2 * width)) * rng.choice([0.01, 1, 30, 1000], (rows, 2 * width))).astype(np.float32)
    gate, up = np.split(x.astype(np.float64), 2, axis=1)
    y = run("SwiGLU", [x], threads=threads)
    np.testing.assert_allclose(y, gate / (1 + np.exp(-np.maximum(gate, -700))) * up, rtol=2e-6, atol=1e-30)


def test_leading_dimensions_are_kept() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 64), np.float32)
    weight = native.pack_f32(rng.standard_normal((5, 64), np.float32))
    assert run("Linear", [x, weight], N=5, K=64).shape == (2, 3, 5)
    assert run("SwiGLU", [x]).shape == (2, 3, 32)
