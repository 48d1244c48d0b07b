"""What ONNX Runtime documents of operators that its CPU build has no kernel for, in numpy, for ONNX's evaluator.

Everything between two float16 values is computed in float32, as the GPU's kernels do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]


def rotate(value: Array, cos: Array, sin: Array) -> Array:
    """[T, heads, D] with each head's halves as the pairs, cos and sin [T, D/2]."""
    low, high = np.split(value.astype(np.float32), 2, axis=-1)
    cos, sin = cos.astype(np.float32)[:, None], sin.astype(np.float32)[:, None]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(value.dtype)


class PagedAttention(OpRun):
    """Packed query, key and value; pools [P, S, KH, D], written in place; rotation inside; causal."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: Array,
        key: None,
        value: None,
        key_cache: Array,
        value_cache: Array,
        cumulative: Array,
        past: Array,
        table: Array,
        cos: Array,
        sin: Array,
        *rest: Array | None,
        **attributes: Any,
    ) -> tuple[Array]:
        *unused, bounds = rest
        assert key is None and value is None and unused == [None] * 6 and attributes["do_rotary"] == 1
        assert all(array.dtype == np.float16 for array in (query, key_cache, value_cache, cos, sin))
        lengths = np.diff(cumulative)
        assert bounds is not None and bounds.tolist() == [lengths.max(), *[(past + lengths).max()] * 2]
        heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
        size = key_cache.shape[1]
        parts = query.reshape(len(query), heads + 2 * kv_heads, -1)
        attended = np.empty((len(query), heads, parts.shape[2]), np.float16)
        for row, (start, stop, seen) in enumerate(zip(cumulative[:-1], cumulative[1:], past, strict=True)):
            position = np.arange(seen, seen + stop - start)
            slots = table[row, position // size], position % size
            q, k, v = np.split(parts[start:stop], [heads, heads + kv_heads], axis=1)
            key_cache[slots] = rotate(k, cos[position], sin[position])
            value_cache[slots] = v
            everything = np.arange(seen + stop - start)
            pages = table[row, everything // size], everything % size
            keys, values = (cache[pages].repeat(heads // kv_heads, axis=1) for cache in (key_cache, value_cache))
            q = rotate(q, cos[position], sin[position]).astype(np.float32)
            scores = np.einsum("qhd,khd->hqk", q, keys.astype(np.float32)) * attributes["scale"]
            scores[:, everything[None] > position[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            attended[start:stop] = np.einsum("hqk,khd->qhd", weights, values.astype(np.float32))
        return (attended.reshape(len(query), -1),)


class SkipSimplifiedLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, value: Array, skip: Array, gain: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
        total = value + skip
        mean = np.mean(np.square(total), axis=-1, keepdims=True)
        scale = 1 / np.sqrt(mean + np.float32(epsilon))
        return total * scale * gain, mean, scale, total


class MatMul(OpRun):
    """Products of float16 with sums in float32; numpy would sum in float16, and slowly."""

    op_domain = ""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return ((a.astype(np.float32) @ b.astype(np.float32)).astype(a.dtype),)


class Sigmoid(OpRun):
    op_domain = ""

    def _run(self, value: Array) -> tuple[Array]:
        return ((0.5 * (1 + np.tanh(0.5 * value.astype(np.float32)))).astype(value.dtype),)


def evaluator(graph: Path) -> ReferenceEvaluator:
    """The graph in ONNX's evaluator, which would take an output without a name for the value of absent inputs."""
    model = onnx.load(graph)
    for node in model.graph.node:
        node.output[:] = [name or f"{node.name}.{index}" for index, name in enumerate(node.output)]
    return ReferenceEvaluator(model, new_ops=[PagedAttention, SkipSimplifiedLayerNormalization, MatMul, Sigmoid])
