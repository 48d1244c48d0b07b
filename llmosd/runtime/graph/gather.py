"""The graph for platforms without the native operators: ONNX Runtime's own operators only.

Slower, and the new K and V rows come out of the graph for the host to store; otherwise the same inputs and outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import MICROSOFT, GraphBuilder
from llmosd.runtime.graph.gather_attention import GatherAttention
from llmosd.runtime.graph.separate import SeparateOperators
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Matrix, Symmetric8

INT8_ACTIVATIONS = 4  # accuracy_level of MatMulNBits


class GatherOperators(SeparateOperators):
    """`float32` expands all weights, else 4-bit and 8-bit blocks are multiplied as they are in the file."""

    token_major = False

    def __init__(self, *, float32: bool) -> None:
        self._float32 = float32
        self.kv_element: int = TensorProto.FLOAT if float32 else TensorProto.FLOAT16
        self._block_sums: dict[str, str] = {}

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._attention = GatherAttention(graph, geometry, rotary)

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str:
        return self._attention.attend(qkv, layer)

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str:
        if self._float32 or isinstance(matrix, Dense):
            return graph.node("MatMul", [value, graph.weight(name, matrix.dense().T)])
        if isinstance(matrix, Symmetric8):
            codes = matrix.codes.view(np.uint8) ^ np.uint8(128)  # the operator's zero point
            return _block_product(graph, value, codes.reshape(*matrix.scales.shape, BLOCK), matrix.scales, name, bits=8)
        return self._affine(graph, value, matrix, name)

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str:
        gate, up = graph.name("gate"), graph.name("up")
        graph.node("Split", [gate_up], outputs=[gate, up], axis=1, num_outputs=2)
        silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        return graph.node("Mul", [silu, up])

    def _affine(self, graph: GraphBuilder, value: str, matrix: Affine4, name: str) -> str:
        """Σ (d·q + m)·x = Σ d·(q − 8)·x + (m + 8d)·Σx by block: the fast kernel's fixed zero point, made exact.

        A zero point in float would be exact too, but leaves the fast kernel.
        """
        codes = matrix.codes.reshape(*matrix.scales.shape, BLOCK)
        packed = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
        product = _block_product(graph, value, packed, matrix.scales, name, bits=4)
        offsets = graph.weight(f"{name}.offsets", (matrix.minima + 8 * matrix.scales).T)
        return graph.node(
            "Add", [product, graph.node("MatMul", [self._sums(graph, value, matrix.scales.shape[1]), offsets])]
        )

    def _sums(self, graph: GraphBuilder, value: str, blocks: int) -> str:
        """Sum of each block of 32 activations, computed once for all matrices that read the same value.

        How many blocks there are is said: of no rows, as the logits' are where nothing is sampled, it is not known.
        """
        if value not in self._block_sums:
            rows = graph.node("Shape", [value], start=0, end=1)
            shape = graph.node("Concat", [rows, graph.constant([blocks, BLOCK])], axis=0)
            parts = graph.node("Reshape", [value, shape])
            self._block_sums[value] = graph.node("ReduceSum", [parts, graph.constant([2])], keepdims=0)
        return self._block_sums[value]


def _block_product(
    graph: GraphBuilder, value: str, codes: NDArray[np.uint8], scales: F32, name: str, *, bits: int
) -> str:
    rows, blocks = scales.shape
    inputs = [value, graph.weight(f"{name}.codes", codes), graph.weight(f"{name}.scales", scales)]
    sizes = {"K": blocks * BLOCK, "N": rows, "bits": bits, "block_size": BLOCK}
    return graph.node("MatMulNBits", inputs, domain=MICROSOFT, accuracy_level=INT8_ACTIVATIONS, **sizes)
