"""The graph for NVIDIA's GPUs: ONNX Runtime's own paged attention and half-precision products.

Weights, K and V, and what goes in and out of products and attention are float16; the residual stream, the norms and
the logits are float32, because a residual stream outgrows what sums of float16 squares can hold. Weights are expanded
to float16, which holds d·q + m of 4-bit blocks to 11 bits: at the batches that a server has, products in the tensor
cores are no slower than unpacking blocks, and no operator for blocks with minima is exact without a second product.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import MICROSOFT, GraphBuilder
from llmosd.runtime.graph.separate import SeparateOperators
from llmosd.runtime.weights import F32, Matrix

ABSENT = ""


def best_page_tokens(geometry: Geometry) -> int:
    """The smallest page that the operator's flash attention takes: its tile of keys must not straddle two pages."""
    return 256 if geometry.head_dim <= 64 else 128 if geometry.head_dim <= 128 else 64


class CudaOperators(SeparateOperators):
    """One more input than other graphs have: `attention_metadata` [3] (`device_pool.attention_metadata`)."""

    kv_element: int = TensorProto.FLOAT16
    token_major = True

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._geometry = geometry
        graph.input("attention_metadata", TensorProto.INT32, [3])
        cos, sin = (table.astype(np.float16) for table in rotary)
        self._rotary = [graph.weight("rotary.cos", cos), graph.weight("rotary.sin", sin)]
        self._halves: dict[str, str] = {}  # float16 of each value that was asked for

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str:
        weight = graph.weight(name, matrix.dense().T.astype(np.float16))
        return self._is_half(graph.node("MatMul", [self._half(graph, value), weight]))

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str:
        g = self._geometry
        pools = [f"key_cache.{layer}", f"value_cache.{layer}"]
        lengths = ["cumulative_lengths", "past_lengths", "page_table"]
        unused = [ABSENT] * 6  # slot mapping, head sink, norms and scales of K and V
        attended = graph.node(
            "PagedAttention",
            [qkv, ABSENT, ABSENT, *pools, *lengths, *self._rotary, *unused, "attention_metadata"],
            domain=MICROSOFT,
            num_heads=g.heads,
            kv_num_heads=g.kv_heads,
            scale=g.head_dim**-0.5,
            do_rotary=1,
        )
        return self._is_half(attended)

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str:
        gate, up = graph.name("gate"), graph.name("up")
        graph.node("Split", [gate_up], outputs=[gate, up], axis=1, num_outputs=2)
        silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        return self._is_half(graph.node("Mul", [silu, up]))

    def widen(self, graph: GraphBuilder, value: str) -> str:
        return graph.node("Cast", [value], to=TensorProto.FLOAT)

    def _half(self, graph: GraphBuilder, value: str) -> str:
        if value not in self._halves:
            self._halves[value] = graph.node("Cast", [value], to=TensorProto.FLOAT16)
        return self._halves[value]

    def _is_half(self, value: str) -> str:
        self._halves[value] = value
        return value
