"""One small session through every operator, compared with numpy: the ABI is what we think it is, on this machine.

The quantised layers also run on integers whose products and sums float32 holds, and bfloat16 what goes into them: these
have to come out to the bit, with `exact` and without. Attention runs on each format of K and V.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from llmosd.errors import ModelError
from llmosd.runtime.native.packing import GATED, pack_f32, pack_q4, pack_q8
from llmosd.runtime.stream import Stream
from llmosd.types import Sampling, SequenceStart

SIZE = 32
EPSILON = 1e-5
EXACT_ROWS = 37  # two of the highest tiles of rows, and one of the others and one more
TOLERANCE = 0.06
"""Relative to the largest output; int8 activations alone cost about 0.02."""

_GAIN = np.linspace(0.5, 1.5, SIZE, dtype=np.float32)
_GREEDY = Stream(SequenceStart(0, 0, (), Sampling(temperature=0.0)))


def run(path: Path) -> None:
    """Raise ModelError unless the library at `path` registers, runs and gives the right numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3 * SIZE), np.float32)
    try:
        got, drawn, attended, half, eighth, *products = _session(path).run(None, _inputs(x))
    except (Fail, InvalidArgument, RuntimeError) as error:
        raise ModelError(f"the self-test could not run: {error}") from error
    expected = _expected(x)
    worst = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not worst <= TOLERANCE:
        raise ModelError(f"the self-test's numbers are off by {worst:.3g} of the largest")
    if drawn.tolist() != got.argmax(axis=1).tolist():
        raise ModelError("the self-test draws other tokens than the likeliest")
    for kind, other in (("float16", half), ("int8", eighth)):
        if not np.abs(other - attended).max() <= TOLERANCE * np.abs(attended).max():
            raise ModelError(f"the self-test's attention over {kind} pages is off")
    integers, eight, four = _integers()
    sums = (integers @ eight.T, integers @ (four.T - np.float32(8))) * 2
    if not all(map(np.array_equal, products, sums)):
        raise ModelError("the self-test's sums of integers are not exact")


def _weights() -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    eight = rng.integers(-127, 128, (SIZE, SIZE), np.int8)
    four = rng.integers(0, 16, (2 * SIZE, SIZE), np.uint8)
    return eight, four, rng.standard_normal((SIZE, SIZE), np.float32)


def _integers() -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.uint8]]:
    """Activations that are their own codes, for each block's largest is 127, and weights with the extreme ones."""
    rng = np.random.default_rng(2)
    x = rng.integers(-127, 128, (EXACT_ROWS, 2 * SIZE)).astype(np.float32)
    x[:, ::SIZE] = 127
    eight = rng.integers(-128, 128, (SIZE, 2 * SIZE), np.int8)
    eight[0] = -128
    return x, eight, rng.integers(0, 16, (SIZE, 2 * SIZE), np.uint8)


def _session(path: Path) -> onnxruntime.InferenceSession:
    """PagedAttention → 8-bit → 4-bit → SwiGLU → 8-bit of the norm, plus the first → 4-bit, gated → float32 → draw, of
    32 columns; beside them 8-bit and 4-bit, exact.
    """
    eight, four, dense = _weights()
    _, exact8, exact4 = _integers()
    unit = np.ones((SIZE, 2), np.float32)
    ones = np.full((SIZE, 1), 0.01, np.float32)
    packed8, scales8 = pack_q8(eight, ones)
    packed4, scales4 = pack_q4(four, np.full((2 * SIZE, 1), 0.1, np.float32), np.full((2 * SIZE, 1), -0.75, np.float32))
    packed_exact8, units8 = pack_q8(exact8, unit)
    packed_exact4, units4 = pack_q4(exact4, unit, -8 * unit)
    constants: dict[str, NDArray[Any]] = {
        "w8": packed8,
        "s8": scales8,
        "w4": packed4,
        "s4": scales4,
        "w32": pack_f32(dense),
        "gain": _GAIN,
        "e8": packed_exact8,
        "u8": units8,
        "e4": packed_exact4,
        "u4": units4,
    }
    pages = ["qkv", "k", "v", "cumulative", "past", "table", "cos", "sin"]
    names = [*pages, "integers", "streams", "k16", "v16", "k8", "v8"]
    types = [TensorProto.FLOAT] * 3 + [TensorProto.INT32] * 3 + [TensorProto.FLOAT] * 3 + [TensorProto.INT64]
    types += [TensorProto.FLOAT16] * 2 + [TensorProto.INT8] * 2
    ranks = [2, 4, 4, 1, 1, 2, 2, 2, 2, 1, 4, 4, 4, 4]
    attention = {"num_heads": 1, "kv_num_heads": 1, "scale": SIZE**-0.5}
    node = functools.partial(helper.make_node, domain="llmos", threads=1)
    nodes = [
        node("PagedAttention", pages, ["a"], **attention),
        node("QLinear", ["a", "w8", "s8"], ["b"], N=SIZE, K=SIZE, bits=8),
        node("QLinear", ["b", "w4", "s4"], ["c"], N=2 * SIZE, K=SIZE, bits=4),
        node("SwiGLU", ["c"], ["d"]),
        node("QLinear", ["d", "w8", "s8", "gain", "a"], ["e"], N=SIZE, K=SIZE, bits=8, epsilon=EPSILON),
        node("QLinear", ["e", "w4", "s4"], ["f"], N=2 * SIZE, K=SIZE, bits=4, gated=1),
        node("Linear", ["f", "w32"], ["y"], N=SIZE, K=SIZE),
        node("QLinear", ["integers", "e8", "u8"], ["y8"], N=SIZE, K=2 * SIZE, bits=8),
        node("QLinear", ["integers", "e4", "u4"], ["y4"], N=SIZE, K=2 * SIZE, bits=4),
        node("QLinear", ["integers", "e8", "u8"], ["r8"], N=SIZE, K=2 * SIZE, bits=8, exact=0),
        node("QLinear", ["integers", "e4", "u4"], ["r4"], N=SIZE, K=2 * SIZE, bits=4, exact=0),
        node("PagedAttention", ["qkv", "k16", "v16", *pages[3:]], ["a16"], **attention),
        node("PagedAttention", ["qkv", "k8", "v8", *pages[3:]], ["a8"], **attention),
        node("Draw", ["y", "streams"], ["drawn"]),
    ]
    floats = ("a", "a16", "a8", "y8", "y4", "r8", "r4")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("y", *floats)]
    outputs.insert(1, helper.make_tensor_value_info("drawn", TensorProto.INT64, [None]))
    graph = helper.make_graph(
        nodes,
        "selftest",
        [helper.make_tensor_value_info(n, t, [None] * r) for n, t, r in zip(names, types, ranks, strict=True)],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("llmos", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    session_options.register_custom_ops_library(str(path))
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])


def _inputs(qkv: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    count = len(qkv)
    return {
        "qkv": qkv,
        "k": np.zeros((2, 1, SIZE, 16), np.float32),
        "v": np.zeros((2, 1, 16, SIZE), np.float32),
        "cumulative": np.array([0, count], np.int32),
        "past": np.array([0], np.int32),
        "table": np.array([[1]], np.int32),
        "cos": np.ones((count, SIZE // 2), np.float32),
        "sin": np.zeros((count, SIZE // 2), np.float32),
        "integers": _integers()[0],
        "streams": np.full(count, _GREEDY.address),
        "k16": np.zeros((2, 1, SIZE, 16), np.float16),
        "v16": np.zeros((2, 1, 16, SIZE), np.float16),
        "k8": np.zeros((2, 1, SIZE + 4, 16), np.int8),
        "v8": np.zeros((2, 1, 16, SIZE + 4), np.int8),
    }


def _expected(qkv: NDArray[np.float32]) -> NDArray[np.float64]:
    eight, four, dense = _weights()
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=1)
    weights = np.tril(np.exp(q @ k.T * SIZE**-0.5))
    a = weights / weights.sum(1, keepdims=True) @ v
    eighth, fourth = eight.T * 0.01, four.T * 0.1 - 0.75
    d = _swiglu(*np.split(a @ eighth @ fourth, 2, axis=1))
    e = a + d / np.sqrt((d**2).mean(1, keepdims=True) + EPSILON) * _GAIN @ eighth
    stripes = (e @ fourth).reshape(len(e), -1, 2, GATED)
    f = _swiglu(*(stripes[:, :, part].reshape(len(e), -1) for part in (0, 1)))
    out: NDArray[np.float64] = f @ dense.T
    return out


def _swiglu(gate: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up
    return out
