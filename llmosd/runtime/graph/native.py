"""The native operators' part of the graph: paged attention in place, block-quantised or float32 products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from llmosd.runtime import native
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import LLMOS, GraphBuilder
from llmosd.runtime.graph.llama import Norm, Stream
from llmosd.runtime.graph.separate import SeparateOperators
from llmosd.runtime.weights import F32, Affine4, Index, Matrix, Symmetric8, to_symmetric8

ABSENT = ""


class _PagedAttention:
    """The order of a row's sums depends on nothing but the row."""

    kv_element: int = TensorProto.FLOAT16
    token_major = False

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._geometry = geometry
        self._rotary = [graph.weight("rotary.cos", rotary[0]), graph.weight("rotary.sin", rotary[1])]

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


class NativeOperators(_PagedAttention):
    """4-bit and 8-bit blocks are used as in the file and all else is rounded to 8 bits; norms, gates and sums are part
    of the products."""

    def normed_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        gain = graph.weight(norm.name, norm.gain)
        return _product(graph, stream[0], matrix, name, gain=gain, epsilon=norm.epsilon), stream

    def gated_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        gain = graph.weight(norm.name, norm.gain)
        mixed = matrix.rows(_gates_beside_values(matrix.shape[0]))
        return _product(graph, stream[0], mixed, name, gain=gain, epsilon=norm.epsilon, gated=1), stream

    def add_linear(self, graph: GraphBuilder, stream: Stream, value: str, matrix: Matrix, name: str) -> Stream:
        return (_product(graph, value, matrix, name, residual=stream[0]),)

    def logits(self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, output: str) -> None:
        gain = graph.weight(norm.name, norm.gain)
        _product(graph, stream[0], matrix, "head", gain=gain, epsilon=norm.epsilon, outputs=[output])


class NativeFloats(_PagedAttention, SeparateOperators):
    """All weights expanded to float32, K and V too: what else is compared with."""

    kv_element: int = TensorProto.FLOAT

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str:
        rows, columns = matrix.shape
        return graph.node(
            "Linear", [value, graph.weight(name, native.pack_f32(matrix.dense()))], domain=LLMOS, N=rows, K=columns
        )

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str:
        return graph.node("SwiGLU", [gate_up], domain=LLMOS)


def _product(
    graph: GraphBuilder,
    value: str,
    matrix: Matrix,
    name: str,
    *,
    gain: str = ABSENT,
    residual: str = ABSENT,
    **attributes: Any,
) -> str:
    rows, columns = matrix.shape
    bits, codes, scales = _packed(matrix)
    weights = [graph.weight(f"{name}.codes", codes), graph.weight(f"{name}.scales", scales)]
    return graph.node(
        "QLinear", [value, *weights, gain, residual], domain=LLMOS, N=rows, K=columns, bits=bits, **attributes
    )


def _packed(matrix: Matrix) -> tuple[int, NDArray[np.uint8], NDArray[Any]]:
    if isinstance(matrix, Affine4):
        return 4, *native.pack_q4(matrix.codes, matrix.scales, matrix.minima)
    symmetric = matrix if isinstance(matrix, Symmetric8) else to_symmetric8(matrix.values)
    return 8, *native.pack_q8(symmetric.codes, symmetric.scales)


def _gates_beside_values(rows: int) -> Index:
    """The order of rows that a gated product wants of the gates, [0, rows / 2), and what they multiply, the others."""
    halves = np.arange(rows, dtype=np.int64).reshape(2, -1, native.GATED)
    return halves.swapaxes(0, 1).reshape(-1)
