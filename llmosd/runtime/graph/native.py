"""The native operators' part of the graph: paged attention in place, block-quantised or float32 products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from llmosd.runtime import native
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import LLMOS, GraphBuilder
from llmosd.runtime.weights import F32, Affine4, Matrix, Symmetric8, to_symmetric8


class NativeOperators:
    """`float32` expands all weights, else 4-bit and 8-bit blocks are used as in the file and all else is rounded to 8.

    Either way the order of a row's sums depends on nothing but the row.
    """

    token_major = False

    def __init__(self, *, float32: bool) -> None:
        self._float32 = float32
        self.kv_element: int = TensorProto.FLOAT if float32 else TensorProto.FLOAT16

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._geometry = geometry
        self._rotary = [graph.weight("rotary.cos", rotary[0]), graph.weight("rotary.sin", rotary[1])]

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str:
        rows, columns = matrix.shape
        if self._float32:
            packed = graph.weight(name, native.pack_f32(matrix.dense()))
            return graph.node("Linear", [value, packed], domain=LLMOS, N=rows, K=columns)
        bits, codes, scales = _packed(matrix)
        weights = [graph.weight(f"{name}.codes", codes), graph.weight(f"{name}.scales", scales)]
        return graph.node("QLinear", [value, *weights], domain=LLMOS, N=rows, K=columns, bits=bits)

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str:
        g = self._geometry
        pools = [f"key_cache.{layer}", f"value_cache.{layer}"]
        return graph.node(
            "PagedAttention",
            [qkv, *pools, "cumulative_lengths", "past_lengths", "page_table", *self._rotary],
            domain=LLMOS,
            num_heads=g.heads,
            kv_num_heads=g.kv_heads,
            scale=g.head_dim**-0.5,
        )

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str:
        return graph.node("SwiGLU", [gate_up], domain=LLMOS)

    def widen(self, graph: GraphBuilder, value: str) -> str:
        return value


def _packed(matrix: Matrix) -> tuple[int, NDArray[np.uint8], NDArray[Any]]:
    if isinstance(matrix, Affine4):
        return 4, *native.pack_q4(matrix.codes, matrix.scales, matrix.minima)
    symmetric = matrix if isinstance(matrix, Symmetric8) else to_symmetric8(matrix.values)
    return 8, *native.pack_q8(symmetric.codes, symmetric.scales)
