"""The Llama architecture as one ONNX graph over packed, ragged tokens.

Inputs are the same for every variant: `token_ids` [T], `cumulative_lengths` [B+1], `past_lengths` [B],
`page_table` [B, MP], `logit_rows` [R], and the page pools of each layer: `key_cache.i` [P, KH, D, S] and
`value_cache.i` [P, KH, S, D], or both [P, S, KH, D] where operators are `token_major`. Output `logits` [R, vocab].
Tokens of all sequences lie one after the other, so chunks of prompts and single decode tokens mix in one run. How a
matrix is multiplied and how attention reads the pool is up to `Operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.graph.builder import MICROSOFT, GraphBuilder, Shape
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Matrix


class Operators(Protocol):
    """One way of doing the costly parts. Values are named; `name` is unique to the weight or layer."""

    kv_element: int  # ONNX element type of the page pools; UNDEFINED where the operator takes several
    token_major: bool  # pages hold token after token, not head after head

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        """Called once, after the inputs exist and before anything else."""

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str: ...

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str: ...

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str: ...

    def widen(self, graph: GraphBuilder, value: str) -> str:
        """The float32 of what `linear` gave."""


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
    geometry = source.geometry
    residual = _embedding(graph, source.embedding())
    layer = source.layer(0)
    normed = _norm(graph, residual, layer.attention_norm, geometry.norm_eps)
    for index in range(geometry.layers):
        name = f"layer.{index}"
        qkv = operators.linear(graph, normed, layer.qkv, f"{name}.qkv")
        attended = operators.attention(graph, qkv, index)
        projected = operators.widen(graph, operators.linear(graph, attended, layer.output, f"{name}.output"))
        normed, residual = _skip_norm(graph, residual, projected, f"{name}.ffn_norm", layer.ffn_norm, geometry)
        gate_up = operators.linear(graph, normed, layer.gate_up, f"{name}.gate_up")
        hidden = operators.swiglu(graph, gate_up)
        down = operators.widen(graph, operators.linear(graph, hidden, layer.down, f"{name}.down"))
        last = index + 1 == geometry.layers
        if not last:
            layer = source.layer(index + 1)
        norm = source.final_norm() if last else layer.attention_norm
        normed, residual = _skip_norm(graph, residual, down, f"{name}.next_norm", norm, geometry)
        on_layer(index + 1)
    rows = graph.node("Gather", [normed, "logit_rows"], axis=0)
    logits = operators.widen(graph, operators.linear(graph, rows, source.head(), "head"))
    graph.node("Identity", [logits], outputs=["logits"])
    graph.output("logits", TensorProto.FLOAT, ["R", geometry.vocab])


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


def _norm(graph: GraphBuilder, value: str, gain: F32, epsilon: float) -> str:
    """Root-mean-square norm in standard operators: the fused ones need a residual to add."""
    square = graph.node("Mul", [value, value])
    mean = graph.node("ReduceMean", [square, graph.constant([-1])], keepdims=1)
    shifted = graph.node("Add", [mean, graph.weight("epsilon", np.array(epsilon, np.float32))])
    normed = graph.node("Div", [value, graph.node("Sqrt", [shifted])])
    return graph.node("Mul", [normed, graph.weight("layer.0.attention_norm", gain)])


def _skip_norm(
    graph: GraphBuilder, residual: str, update: str, name: str, gain: F32, geometry: Geometry
) -> tuple[str, str]:
    """(norm of the sum, sum) of the residual stream and a block's output."""
    normed, total = graph.name("normed"), graph.name("residual")
    graph.node(
        "SkipSimplifiedLayerNormalization",
        [residual, update, graph.weight(name, gain)],
        domain=MICROSOFT,
        outputs=[normed, "", "", total],
        epsilon=geometry.norm_eps,
    )
    return normed, total
