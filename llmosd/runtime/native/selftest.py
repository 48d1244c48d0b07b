"""One small session through every operator, compared with numpy: the ABI is what we think it is, on this machine."""

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
from llmosd.runtime.native.packing import pack_f32, pack_q4, pack_q8

SIZE = 32
TOLERANCE = 0.02
"""Relative to the largest output; int8 activations alone cost about 0.005."""


def run(path: Path) -> None:
    """Raise ModelError unless the library at `path` registers, runs and gives the right numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3 * SIZE), np.float32)
    try:
        got = _session(path).run(None, _inputs(x))[0]
    except (Fail, InvalidArgument, RuntimeError) as error:
        raise ModelError(f"the self-test could not run: {error}") from error
    expected = _expected(x)
    worst = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not worst <= TOLERANCE:
        raise ModelError(f"the self-test's numbers are off by {worst:.3g} of the largest")


def _weights() -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    eight = rng.integers(-127, 128, (SIZE, SIZE), np.int8)
    four = rng.integers(0, 16, (2 * SIZE, SIZE), np.uint8)
    return eight, four, rng.standard_normal((SIZE, SIZE), np.float32)


def _session(path: Path) -> onnxruntime.InferenceSession:
    """PagedAttention → 8-bit → 4-bit → SwiGLU → float32, each of 32 columns."""
    eight, four, dense = _weights()
    ones = np.full((SIZE, 1), 0.01, np.float32)
    packed8, scales8 = pack_q8(eight, ones)
    packed4, scales4 = pack_q4(four, np.full((2 * SIZE, 1), 0.1, np.float32), np.full((2 * SIZE, 1), -0.75, np.float32))
    constants: dict[str, NDArray[Any]] = {
        "w8": packed8,
        "s8": scales8,
        "w4": packed4,
        "s4": scales4,
        "w32": pack_f32(dense),
    }
    pages = ["qkv", "k", "v", "cumulative", "past", "table", "cos", "sin"]
    types = [TensorProto.FLOAT] * 3 + [TensorProto.INT32] * 3 + [TensorProto.FLOAT] * 2
    shapes = [[None, None], [None] * 4, [None] * 4, [None], [None], [None, None], [None, None], [None, None]]
    node = functools.partial(helper.make_node, domain="llmos", threads=1)
    nodes = [
        node("PagedAttention", pages, ["a"], num_heads=1, kv_num_heads=1, scale=SIZE**-0.5),
        node("QLinear", ["a", "w8", "s8"], ["b"], N=SIZE, K=SIZE, bits=8),
        node("QLinear", ["b", "w4", "s4"], ["c"], N=2 * SIZE, K=SIZE, bits=4),
        node("SwiGLU", ["c"], ["d"]),
        node("Linear", ["d", "w32"], ["y"], N=SIZE, K=SIZE),
    ]
    graph = helper.make_graph(
        nodes,
        "selftest",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in zip(pages, types, shapes, strict=True)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
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
    }


def _expected(qkv: NDArray[np.float32]) -> NDArray[np.float64]:
    eight, four, dense = _weights()
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=1)
    weights = np.tril(np.exp(q @ k.T * SIZE**-0.5))
    a = weights / weights.sum(1, keepdims=True) @ v
    gate, up = np.split(a @ (eight.T * 0.01) @ (four.T * 0.1 - 0.75), 2, axis=1)
    out: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up @ dense.T
    return out
