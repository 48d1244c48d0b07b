"""The Llama architecture as one ONNX graph over packed, ragged tokens.

Inputs are the same for every variant: `token_ids` [T], `cumulative_lengths` [B+1], `past_lengths` [B],
`page_table` [B, MP], `logit_rows` [R], and the page pools of each layer: `key_cache.i` [P, KH, D, S] and
`value_cache.i` [P, KH, S, D], or both [P, S, KH, D] where operators are `token_major`. Output `logits` [R, vocab].
Tokens of all sequences lie one after the other, so chunks of prompts and single decode tokens mix in one run. How a
matrix is multiplied and how attention reads the pool is up to `Operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.graph.builder import GraphBuilder, Shape
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Matrix

Stream: TypeAlias = tuple[str, ...]
"""Values [T, hidden] whose sum is the residual stream."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square norm; `name` is unique to its gain."""

    name: str
    gain: F32
    epsilon: float


class Operators(Protocol):
    """One way of doing what a decoder layer consists of. Values are named; `name` is unique to a matrix."""

    kv_element: int  # ONNX element type of the page pools; UNDEFINED where the operator takes several
    token_major: bool  # pages hold token after token, not head after head

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        """Called once, after the inputs exist and before anything else."""

    def normed_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        """The norm of the stream times a matrix, and the stream, perhaps in fewer values."""

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str: ...

    def gated_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        """As `normed_linear`; the matrix gives gates and then what they multiply, and the value is their SwiGLU."""

    def add_linear(self, graph: GraphBuilder, stream: Stream, value: str, matrix: Matrix, name: str) -> Stream:
        """The stream plus `value` times a matrix."""

    def logits(self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, output: str) -> None:
        """As `normed_linear`, in float32 and by the name of `output`."""


def build_llama(source: GgufFile, operators: Operators, path: Path, on_layer: Callable[[int], None]) -> None:
    """Write the graph to `path` and its weights beside it. `on_layer` hears how many layers are done."""
    graph = GraphBuilder(path)
    try:
        _inputs(graph, source.geometry, operators)
        operators.prepare(graph, source.geometry, source.rotary_tables())
        _network(graph, source, operators, on_layer)
        graph.save()
    finally:
        graph.close()


def _inputs(graph: GraphBuilder, geometry: Geometry, operators: Operators) -> None:
    graph.input("token_ids", TensorProto.INT64, ["T"])
    graph.input("cumulative_lengths", TensorProto.INT32, ["B_plus_1"])
    graph.input("past_lengths", TensorProto.INT32, ["B"])
    graph.input("page_table", TensorProto.INT32, ["B", "MP"])
    graph.input("logit_rows", TensorProto.INT64, ["R"])
    heads, size = geometry.kv_heads, geometry.head_dim
    keys: Shape = ["P", "S", heads, size] if operators.token_major else ["P", heads, size, "S"]
    values: Shape = ["P", "S", heads, size] if operators.token_major else ["P", heads, "S", size]
    for layer in range(geometry.layers):
        graph.input(f"key_cache.{layer}", operators.kv_element, keys)
        graph.input(f"value_cache.{layer}", operators.kv_element, values)


def _network(graph: GraphBuilder, source: GgufFile, operators: Operators, on_layer: Callable[[int], None]) -> None:
    epsilon = source.geometry.norm_eps
    stream: Stream = (_embedding(graph, source.embedding()),)
    for index in range(source.geometry.layers):
        layer, name = source.layer(index), f"layer.{index}"
        norm = Norm(f"{name}.attention_norm", layer.attention_norm, epsilon)
        qkv, stream = operators.normed_linear(graph, stream, norm, layer.qkv, f"{name}.qkv")
        attended = operators.attention(graph, qkv, index)
        stream = operators.add_linear(graph, stream, attended, layer.output, f"{name}.output")
        norm = Norm(f"{name}.ffn_norm", layer.ffn_norm, epsilon)
        hidden, stream = operators.gated_linear(graph, stream, norm, layer.gate_up, f"{name}.gate_up")
        stream = operators.add_linear(graph, stream, hidden, layer.down, f"{name}.down")
        on_layer(index + 1)
    rows = tuple(graph.node("Gather", [value, "logit_rows"], axis=0) for value in stream)
    norm = Norm("final_norm", source.final_norm(), epsilon)
    operators.logits(graph, rows, norm, source.head(), "logits")
    graph.output("logits", TensorProto.FLOAT, ["R", source.geometry.vocab])


def _embedding(graph: GraphBuilder, matrix: Matrix) -> str:
    """Rows of the embedding, exact: a 4- or 8-bit table stays so and only the rows in use are expanded."""
    if isinstance(matrix, Dense):
        return _embedding_rows(graph, "", matrix.values)
    rows, columns = matrix.shape
    blocks = matrix.codes.reshape(rows, columns // BLOCK, BLOCK)
    codes = _nibbles(graph, blocks) if isinstance(matrix, Affine4) else _embedding_rows(graph, ".codes", blocks)
    scales = _embedding_rows(graph, ".scales", matrix.scales[..., None])
    values = graph.node("Mul", [graph.node("Cast", [codes], to=TensorProto.FLOAT), scales])
    if isinstance(matrix, Affine4):
        values = graph.node("Add", [values, _embedding_rows(graph, ".minima", matrix.minima[..., None])])
    return graph.node("Reshape", [values, graph.constant([-1, columns])])


def _embedding_rows(graph: GraphBuilder, part: str, table: NDArray[Any]) -> str:
    return graph.node("Gather", [graph.weight(f"embedding{part}", table), "token_ids"])


def _nibbles(graph: GraphBuilder, blocks: NDArray[Any]) -> str:
    """4-bit codes of the tokens' rows, from bytes that hold the first half of a block low and the second high."""
    half = BLOCK // 2
    taken = _embedding_rows(graph, ".codes", blocks[..., :half] | (blocks[..., half:] << 4))
    low = graph.node("BitwiseAnd", [taken, graph.weight("low.nibble", np.array(15, np.uint8))])
    high = graph.node("BitShift", [taken, graph.weight("nibble.bits", np.array(4, np.uint8))], direction="RIGHT")
    return graph.node("Concat", [low, high], axis=2)
