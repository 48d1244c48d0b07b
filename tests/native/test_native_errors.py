"""Whatever is wrong with an input gives an error that names it; nothing is written and the session lives on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from native_operators import Array, Geometry, Pool, run
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidGraph, RuntimeException

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
    ("past", at(0, -1), "negative"),
    ("past", at(1, 2**31 - 1), "longer than"),
    ("past", at(1, 60), "longer than its row"),
    ("past", lambda a: a[:1], "one entry more"),
    ("cumulative", at(0, 1), "from 0"),
    ("cumulative", at(2, 3), "from 0"),
    ("cumulative", at(1, 5), "decrease"),
    ("cumulative", at(1, -3), "decrease"),
    ("cos", lambda a: a[:10], "cos and sin"),
    ("sin", lambda a: a[:, 1:], "cos and sin"),
    ("qkv", lambda a: a[:, :-1], "qkv"),
    ("qkv", lambda a: a[:-1], "from 0"),
    ("keys", lambda a: a[..., :8], "16, 32, 64 or 128"),
    ("keys", lambda a: a[:, :, :31], "multiple of 16"),
    ("keys", lambda a: a[:, :1], "kv_num_heads"),
    ("keys", lambda a: a.astype(np.float64), "float32, float16 or int8"),
    ("keys", lambda a: a.astype(np.float16), "element type"),
    ("values", lambda a: a[:-1], "value_cache"),
    ("values", lambda a: a[..., 0], "4 dimensions"),
]


@pytest.mark.parametrize(("name", "change", "message"), ATTENTION)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_refuses(name: str, change: Callable[[Array], Array], message: str, threads: int) -> None:
    g = Geometry(4, 2, 32, 16, context=64)
    pool = Pool(g, 6)
    rows = np.ones((2, 8 * 32), np.float32)
    parts = [(rows, 0, [0]), (rows, 20, [1, 2])]
    inputs: dict[str, Array] = {
        "qkv": np.concatenate([rows, rows]),
        "keys": pool.keys,
        "values": pool.values,
        "cumulative": np.array([0, 2, 4], np.int32),
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
    ],
)
def test_qlinear_refuses_attributes(attributes: dict[str, int]) -> None:
    inputs = [np.zeros((1, 64), np.float32), np.zeros(256, np.uint8), np.zeros(32, np.float16)]
    with pytest.raises((InvalidArgument, RuntimeException), match=r"out of range|multiple of 32|bits must be"):
        run("QLinear", inputs, **attributes)


def test_types_are_checked_when_the_session_is_made() -> None:
    weight = np.zeros(64, np.float16)
    with pytest.raises(InvalidGraph, match="Type Error"):
        run("Linear", [np.zeros((1, 4), np.float32), weight], N=16, K=4)


def test_linear_and_swiglu_refuse_wrong_sizes() -> None:
    x = np.zeros((1, 5), np.float32)
    with pytest.raises((InvalidArgument, RuntimeException), match="size"):
        run("Linear", [x, np.zeros(79, np.float32)], N=16, K=5)
    with pytest.raises((InvalidArgument, RuntimeException), match="even"):
        run("SwiGLU", [x])


def test_packing_refuses_what_it_cannot_hold() -> None:
    ones = np.ones((8, 1), np.float32)
    with pytest.raises(ValueError, match="at most 15"):
        native.pack_q4(np.full((8, 32), 16, np.uint8), ones, ones)
    with pytest.raises(ValueError, match="multiple of 32"):
        native.pack_q8(np.zeros((8, 33), np.int8), ones)
