"""Whatever is wrong with an input gives an error that names it; nothing is written and the session lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, Geometry, Pool, run
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidGraph, RuntimeException

from llmosd.errors import ModelError
from llmosd.runtime import native

Change = tuple[str, Callable[[Array], Array], str]


def at(index: int | tuple[int, int], value: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array[index] = value
        return array

    return change


ATTENTION: list[Change] = [
    ("table", at((0, 0), -1), "page id"),
    ("table", at((0, 0), 6), "page id"),
    ("table", at((1, 1), 2**31 - 1), "page id"),
    ("table", lambda a: a[:1], "page_table as many rows"),
    ("table", lambda a: a[:, :1], "longer than its row"),
    ("table", lambda a: a[0], "2 dimensions"),
    ("table", lambda a: a.reshape((1,) * 7 + a.shape), "more than 8 dimensions"),
    ("past", at(0, -1), "negative"),
    ("past", at(1, 2**31 - 1), "longer than"),
    ("past", at(1, 60), "longer than its row"),
    ("past", lambda a: a[:1], "one entry more"),
    ("past", lambda a: a[None], "1 dimension"),
    ("cumulative", at(0, 1), "from 0"),
    ("cumulative", at(2, 7), "from 0"),
    ("cumulative", at(1, 5), "decrease"),
    ("cumulative", at(1, -3), "decrease"),
    ("cumulative", lambda a: a[:-1], "one entry more"),
    ("cumulative", lambda a: a[None], "1 dimension"),
    ("cos", lambda a: a[:10], "cos and sin"),
    ("cos", lambda a: a[0], "2 dimensions"),
    ("sin", lambda a: a[:, 1:], "cos and sin"),
    ("qkv", lambda a: a[:, :-1], "qkv"),
    ("qkv", lambda a: a[:-1], "from 0"),
    ("qkv", lambda a: a[None], "2 dimensions"),
    ("keys", lambda a: a[..., :8], "16, 32, 64 or 128"),
    ("keys", lambda a: a[:, :, :31], "multiple of 16"),
    ("keys", lambda a: a[:, :1], "kv_num_heads"),
    ("keys", lambda a: a[0], "4 dimensions"),
    ("keys", lambda a: np.repeat(a, 9, axis=2), "32 to 256"),
    ("keys", lambda a: a.astype(np.float64), "float32, float16 or int8"),
    ("keys", lambda a: a.astype(np.float16), "element type"),
    ("values", lambda a: a[:-1], "value_cache"),
    ("values", lambda a: a[..., 0], "4 dimensions"),
]


@pytest.mark.parametrize(("name", "change", "message"), ATTENTION)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 2], ids=["decode", "prefill"])
def test_attention_refuses(name: str, change: Callable[[Array], Array], message: str, count: int, threads: int) -> None:
    g = Geometry(4, 2, 32, 16, context=64)
    pool = Pool(g, 6)
    rows = np.ones((count, 8 * 32), np.float32)
    parts = [(rows, 0, [0]), (rows, 20, [1, 2])]
    inputs: dict[str, Array] = {
        "qkv": np.concatenate([rows, rows]),
        "keys": pool.keys,
        "values": pool.values,
        "cumulative": np.array([0, count, 2 * count], np.int32),
        "past": np.array([0, 20], np.int32),
        "table": np.array([[0, -5, -5], [1, 2, -5]], np.int32),
        "cos": g.rotation[0],
        "sin": g.rotation[1],
    }
    wrong = np.ascontiguousarray(change(inputs[name].copy()))
    with pytest.raises((InvalidArgument, RuntimeException), match=message):
        pool.step(parts, threads=threads, **{name: wrong})
    assert np.isnan(pool.keys).all()
    assert np.isnan(pool.values).all()
    pool.step([(rows, 0, [0])], threads=threads)  # the same session still works


integers = st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 70)
wrong = st.lists(st.tuples(st.sampled_from(["cumulative", "past", "table"]), st.integers(0, 8), integers), max_size=4)


@settings(max_examples=150, deadline=None)
@given(wrong, st.integers(1, 4))
def test_any_ids_and_lengths_give_a_result_or_an_error(changes: list[tuple[str, int, int]], threads: int) -> None:
    """Also numbers whose sums do not fit in 32 bits; what is refused has written nothing."""
    g = Geometry(4, 2, 32, 16, context=64)
    pool = Pool(g, 6)
    rows = np.ones((6, 8 * 32), np.float32)
    inputs = {
        "cumulative": np.array([0, 1, 3, 6], np.int32),
        "past": np.array([20, 0, 14], np.int32),
        "table": np.array([[1, 2, -5], [0, -5, -5], [3, 4, -5]], np.int32),
    }
    for name, place, value in changes:
        inputs[name].flat[place % inputs[name].size] = value
    try:
        out = pool.step([(rows, 0, [0])], threads=threads, **inputs)
    except (InvalidArgument, RuntimeException) as error:
        assert "PagedAttention" in str(error)
        assert np.isnan(pool.keys).all() and np.isnan(pool.values).all()
    else:
        assert out.shape == (6, 4 * 32)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ((np.int8, 36), (np.float32, 32), "element type"),
        ((np.float32, 32), (np.int8, 36), "element type"),
        ((np.int8, 32), (np.int8, 32), "multiple of 16"),
        ((np.int8, 36), (np.int8, 32), "4 wider"),
    ],
)
def test_attention_refuses_int8_caches_without_room_for_scales(
    keys: tuple[type, int], values: tuple[type, int], message: str
) -> None:
    pool = Pool(Geometry(4, 2, 32, 16), 6)
    caches = {
        "keys": np.ones((6, 2, keys[1], 16), keys[0]),
        "values": np.ones((6, 2, 16, values[1]), values[0]),
    }
    with pytest.raises((InvalidArgument, RuntimeException), match=message):
        pool.step([(np.ones((2, 8 * 32), np.float32), 0, [0])], **caches)
    assert all((cache == 1).all() for cache in caches.values())


@pytest.mark.parametrize(
    "attributes",
    [
        {"num_heads": 3, "kv_num_heads": 2, "scale": 1.0},
        {"num_heads": 0, "kv_num_heads": 1, "scale": 1.0},
        {"num_heads": 98, "kv_num_heads": 2, "scale": 1.0},
        {"num_heads": 2, "scale": 1.0},
        {"num_heads": 2, "kv_num_heads": 1},
        {"num_heads": 2, "kv_num_heads": 1, "scale": 1.0, "threads": 0},
    ],
)
def test_attention_refuses_attributes(attributes: dict[str, int | float]) -> None:
    threads = int(attributes.pop("threads", 1))
    ints, floats = np.zeros(1, np.int32), np.zeros((1, 16), np.float32)
    cache = np.zeros((1, 1, 32, 16), np.float32)
    with pytest.raises((InvalidArgument, RuntimeException)):
        run(
            "PagedAttention",
            [floats, cache, cache, ints, ints, ints[None], floats, floats],
            threads=threads,
            **attributes,
        )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("wrong", ["x", "codes", "scales"])
def test_qlinear_refuses_wrong_sizes(bits: int, wrong: str) -> None:
    codes, ones = np.zeros((8, 64), np.uint8), np.ones((8, 2), np.float32)
    packed = native.pack_q4(codes, ones, ones) if bits == 4 else native.pack_q8(codes.view(np.int8), ones)
    inputs = {"x": np.zeros((1, 64), np.float32), "codes": packed[0], "scales": packed[1]}
    inputs[wrong] = np.ascontiguousarray(inputs[wrong][..., :-1])
    with pytest.raises((InvalidArgument, RuntimeException), match=r"size|last dimension"):
        run("QLinear", list(inputs.values()), N=8, K=64, bits=bits)


@pytest.mark.parametrize(
    "attributes",
    [
        {"N": 8, "K": 40, "bits": 4},
        {"N": 8, "K": 64, "bits": 5},
        {"N": 0, "K": 64, "bits": 4},
        {"N": 2**31 - 8, "K": 2**31 - 32, "bits": 8},
        {"N": 40, "K": 64, "bits": 4, "gated": 1},
    ],
)
def test_qlinear_refuses_attributes(attributes: dict[str, int]) -> None:
    inputs = [np.zeros((1, 64), np.float32), np.zeros(256, np.uint8), np.zeros(32, np.float16)]
    with pytest.raises((InvalidArgument, RuntimeException), match=r"out of range|multiple of 32|bits must be"):
        run("QLinear", inputs, **attributes)


@pytest.mark.parametrize(("gain", "residual"), [((63,), None), (None, (1, 7)), (None, (2, 8)), (None, (1,))])
def test_qlinear_refuses_a_gain_or_a_residual_of_another_shape(
    gain: tuple[int, ...] | None, residual: tuple[int, ...] | None
) -> None:
    inputs, attributes = right("QLinear")
    parts = [None if shape is None else np.zeros(shape, np.float32) for shape in (gain, residual)]
    with pytest.raises((InvalidArgument, RuntimeException), match=r"gain must have K|residual must have y's shape"):
        run("QLinear", [*inputs, *parts], **attributes)


def right(op: str) -> tuple[list[Array], dict[str, Any]]:
    """Inputs and attributes that an operator takes."""
    x, ones = np.zeros((1, 64), np.float32), np.ones((8, 2), np.float32)
    if op == "PagedAttention":
        ints, table, angles = np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), np.zeros((4, 16), np.float32)
        cache = np.zeros((1, 1, 32, 16), np.float32)
        inputs = [np.zeros((1, 96), np.float32), cache, cache.swapaxes(2, 3).copy(), ints, ints[:1], table]
        return [*inputs, angles, angles], {"num_heads": 1, "kv_num_heads": 1, "scale": 1.0}
    if op == "QLinear":
        return [x, *native.pack_q4(np.zeros((8, 64), np.uint8), ones, ones)], {"N": 8, "K": 64, "bits": 4}
    if op == "Linear":
        return [x, native.pack_f32(np.zeros((8, 64), np.float32))], {"N": 8, "K": 64}
    return [x, np.zeros(1, np.int64)] if op == "Draw" else [x], {}


OPERATORS = ["PagedAttention", "QLinear", "Linear", "SwiGLU", "Draw"]
ANY_TYPE = {("PagedAttention", 1), ("PagedAttention", 2)}  # what the pages hold is looked at when it runs


@pytest.mark.parametrize(
    ("op", "place"),
    [(op, place) for op in OPERATORS for place in range(len(right(op)[0])) if (op, place) not in ANY_TYPE],
)
@pytest.mark.parametrize("kind", [np.float64, np.int8])
def test_element_types_are_checked_when_the_session_is_made(op: str, place: int, kind: type) -> None:
    inputs, attributes = right(op)
    run(op, inputs, **attributes)
    inputs[place] = inputs[place].astype(kind)
    with pytest.raises(InvalidGraph, match="Type Error"):
        run(op, inputs, **attributes)


@pytest.mark.parametrize(
    ("op", "place", "shape", "message"),
    [
        ("QLinear", 0, (), "last dimension"),
        ("QLinear", 0, (1, 32), "last dimension"),
        ("QLinear", 1, (), "weight does not have the size"),
        ("QLinear", 2, (0,), "scales do not have the size"),
        ("Linear", 0, (), "last dimension"),
        ("Linear", 0, (1, 65), "last dimension"),
        ("Linear", 0, (64, 0), "last dimension"),
        ("Linear", 1, (1023,), "size"),
        ("SwiGLU", 0, (), "even"),
        ("SwiGLU", 0, (1, 5), "even"),
        ("SwiGLU", 0, (1,) * 8 + (2,), "more than 8 dimensions"),
    ],
)
def test_wrong_shapes_are_refused(op: str, place: int, shape: tuple[int, ...], message: str) -> None:
    inputs, attributes = right(op)
    inputs[place] = np.zeros(shape, inputs[place].dtype)
    with pytest.raises((InvalidArgument, RuntimeException), match=message):
        run(op, inputs, **attributes)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("threads", [-1, 0, 257])
def test_a_number_of_threads_that_makes_no_sense_is_refused(op: str, threads: int) -> None:
    inputs, attributes = right(op)
    with pytest.raises((InvalidArgument, RuntimeException), match="threads is out of range"):
        run(op, inputs, threads=threads, **attributes)


@pytest.mark.parametrize(
    "attributes", [{"N": 0, "K": 64}, {"N": 8, "K": 0}, {"N": 8}, {"K": 64}, {"N": 2**24 + 1, "K": 64}]
)
def test_linear_refuses_attributes(attributes: dict[str, int]) -> None:
    with pytest.raises((InvalidArgument, RuntimeException), match="Linear"):
        run("Linear", right("Linear")[0], **attributes)


def test_packing_refuses_what_it_cannot_hold() -> None:
    ones = np.ones((8, 1), np.float32)
    with pytest.raises(ValueError, match="at most 15"):
        native.pack_q4(np.full((8, 32), 16, np.uint8), ones, ones)
    with pytest.raises(ValueError, match="multiple of 32"):
        native.pack_q8(np.zeros((8, 33), np.int8), ones)
    nibbles, bytes_ = np.zeros((8, 32), np.uint8), np.zeros((8, 32), np.int8)
    for scale in (70.0, -70.0, np.inf, np.nan):
        with pytest.raises(ModelError, match="magnitude"):
            native.pack_q4(nibbles, scale * ones, 0 * ones)
        with pytest.raises(ModelError, match="magnitude"):
            native.pack_q8(bytes_, scale * ones)
    with pytest.raises(ModelError, match="magnitude 1001"):
        native.pack_q4(nibbles, ones, -1001 * ones)
