"""The graph for platforms without the native operators: ONNX Runtime's own operators only.

Linear layers see all packed tokens at once; attention runs sequence by sequence in a Loop, which gathers exactly the
pages that a sequence has filled, so nothing is padded and nothing outside them is ever read. The pool cannot be
written from inside the graph: the new K and V rows come out as `key_rows.i` and `value_rows.i` [T, KH, D].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import MICROSOFT, GraphBuilder
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Matrix, Symmetric8


class GatherOperators:
    """`float32` expands all weights, else 4-bit and 8-bit blocks are multiplied as they are in the file."""

    def __init__(self, *, float32: bool) -> None:
        self._float32 = float32
        self.kv_element: int = TensorProto.FLOAT if float32 else TensorProto.FLOAT16
        self._block_sums: dict[str, str] = {}

    def prepare(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._geometry = geometry
        self._cumulative = graph.node("Cast", ["cumulative_lengths"], to=TensorProto.INT64)
        self._past = graph.node("Cast", ["past_lengths"], to=TensorProto.INT64)
        positions = self._positions(graph)
        cos, sin = graph.weight("rotary.cos", rotary[0]), graph.weight("rotary.sin", rotary[1])
        self._cos = _unsqueeze(graph, graph.node("Gather", [cos, positions]), 1)
        self._sin = _unsqueeze(graph, graph.node("Gather", [sin, positions]), 1)
        self._sequences = graph.node("Size", ["past_lengths"])
        self._page_tokens = _scalar(graph, graph.node("Shape", ["value_cache.0"]), 2)

    # ------------------------------------------------------------ linear layers

    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str:
        if self._float32 or isinstance(matrix, Dense):
            return graph.node("MatMul", [value, graph.weight(name, matrix.dense().T)])
        if isinstance(matrix, Symmetric8):
            codes = (matrix.codes.view(np.uint8) ^ np.uint8(128)).reshape(matrix.shape[0], -1, BLOCK)  # zero point 128
            return _matmul_nbits(graph, value, codes, matrix.scales, name, bits=8)
        return self._affine(graph, value, matrix, name)

    def _affine(self, graph: GraphBuilder, value: str, matrix: Affine4, name: str) -> str:
        """Σ (d·q + m)·x = Σ d·(q − 8)·x + (m + 8d)·Σx by block: the fast kernel's fixed zero point, made exact.

        A zero point in float would be exact too, but leaves the fast kernel.
        """
        codes = matrix.codes.reshape(matrix.shape[0], -1, BLOCK)
        packed = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
        product = _matmul_nbits(graph, value, packed, matrix.scales, name, bits=4)
        offsets = graph.weight(f"{name}.offsets", (matrix.minima + 8 * matrix.scales).T)
        return graph.node("Add", [product, graph.node("MatMul", [self._sums(graph, value), offsets])])

    def _sums(self, graph: GraphBuilder, value: str) -> str:
        """Sum of each block of 32 activations, computed once for all matrices that read the same value."""
        if value not in self._block_sums:
            rows = graph.node("Shape", [value], start=0, end=1)
            shape = graph.node("Concat", [rows, graph.constant([-1, BLOCK])], axis=0)
            blocks = graph.node("Reshape", [value, shape])
            self._block_sums[value] = graph.node("ReduceSum", [blocks, graph.constant([2])], keepdims=0)
        return self._block_sums[value]

    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str:
        gate, up = graph.name("gate"), graph.name("up")
        graph.node("Split", [gate_up], outputs=[gate, up], axis=1, num_outputs=2)
        silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        return graph.node("Mul", [silu, up])

    # ------------------------------------------------------------ attention

    def attention(self, graph: GraphBuilder, qkv: str, layer: int) -> str:
        g = self._geometry
        heads = graph.node("Reshape", [qkv, graph.constant([-1, g.heads + 2 * g.kv_heads, g.head_dim])])
        query, keys, values = graph.name("query"), f"key_rows.{layer}", f"value_rows.{layer}"
        rotated = self._rotate(graph, _slice(graph, heads, 0, g.heads + g.kv_heads, axis=1))
        graph.node("Split", [rotated, graph.constant([g.heads, g.kv_heads])], outputs=[query, keys], axis=1)
        end = g.heads + 2 * g.kv_heads
        graph.node("Identity", [_slice(graph, heads, g.heads + g.kv_heads, end, axis=1)], outputs=[values])
        for name in (keys, values):
            graph.output(name, TensorProto.FLOAT, ["T", g.kv_heads, g.head_dim])
        empty = graph.weight("no_rows", np.zeros((0, g.heads * g.head_dim), np.float32))
        body = self._one_sequence(graph, query, layer)
        return graph.node("Loop", [self._sequences, "", empty], body=body)

    def _positions(self, graph: GraphBuilder) -> str:
        """Place of every packed token in its own sequence, [T]."""
        token = _range(graph, graph.node("Size", ["token_ids"]))
        ends = _slice(graph, self._cumulative, 1, np.iinfo(np.int64).max, axis=0)
        passed = graph.node("GreaterOrEqual", [_unsqueeze(graph, token, 1), _unsqueeze(graph, ends, 0)])
        counts = graph.node("Cast", [passed], to=TensorProto.INT64)
        sequence = graph.node("ReduceSum", [counts, graph.constant([1])], keepdims=0)
        start = graph.node("Gather", [self._cumulative, sequence])
        past = graph.node("Gather", [self._past, sequence])
        return graph.node("Add", [graph.node("Sub", [token, start]), past])

    def _rotate(self, graph: GraphBuilder, value: str) -> str:
        """Rotary embedding with each head's halves as the pairs, value [T, heads, D]."""
        half = self._geometry.head_dim // 2
        a, b = _slice(graph, value, 0, half, axis=2), _slice(graph, value, half, 2 * half, axis=2)
        low = graph.node("Sub", [graph.node("Mul", [a, self._cos]), graph.node("Mul", [b, self._sin])])
        high = graph.node("Add", [graph.node("Mul", [b, self._cos]), graph.node("Mul", [a, self._sin])])
        return graph.node("Concat", [low, high], axis=2)

    def _one_sequence(self, graph: GraphBuilder, query: str, layer: int) -> GraphProto:
        """Loop body: append one sequence's attended rows [L, H·D] to those before."""
        step, go, rows, next_go, next_rows = (graph.name(stem) for stem in ("step", "go", "rows", "go", "rows"))
        with graph.body() as nodes:
            start = graph.node("Gather", [self._cumulative, step])
            following = graph.node("Add", [step, graph.constant(1)])
            stop = graph.node("Gather", [self._cumulative, following])
            past = graph.node("Gather", [self._past, step])
            attended = self._attend(graph, query, layer, step, start, stop, past)
            graph.node("Identity", [go], outputs=[next_go])
            graph.node("Concat", [rows, attended], outputs=[next_rows], axis=0)
        bool_, float_ = TensorProto.BOOL, TensorProto.FLOAT
        inputs = [_info(step, TensorProto.INT64, []), _info(go, bool_, []), _info(rows, float_, None)]
        outputs = [_info(next_go, bool_, []), _info(next_rows, float_, None)]
        return helper.make_graph(nodes, f"sequence.{layer}", inputs, outputs)

    def _attend(self, graph: GraphBuilder, query: str, layer: int, step: str, start: str, stop: str, past: str) -> str:
        g = self._geometry
        pages = self._pages(graph, step, past)
        key = self._with_past(graph, f"key_cache.{layer}", f"key_rows.{layer}", pages, (start, stop, past), keys=True)
        value = self._with_past(
            graph, f"value_cache.{layer}", f"value_rows.{layer}", pages, (start, stop, past), keys=False
        )
        rows = _slice_at(graph, query, start, stop)
        grouped = graph.node("Reshape", [rows, graph.constant([-1, g.kv_heads, g.heads // g.kv_heads, g.head_dim])])
        q = graph.node("Transpose", [grouped], perm=[1, 2, 0, 3])  # [KH, G, L, D]
        scale = graph.weight("attention.scale", np.array(g.head_dim**-0.5, np.float32))
        scores = graph.node("MatMul", [graph.node("Mul", [q, scale]), key])
        mask = self._causal(graph, graph.node("Sub", [stop, start]), past)
        hidden = graph.weight("attention.hidden", np.array(-np.inf, np.float32))
        weights = graph.node("Softmax", [graph.node("Where", [mask, scores, hidden])], axis=-1)
        mixed = graph.node("Transpose", [graph.node("MatMul", [weights, value])], perm=[2, 0, 1, 3])
        return graph.node("Reshape", [mixed, graph.constant([-1, g.heads * g.head_dim])])

    def _pages(self, graph: GraphBuilder, step: str, past: str) -> str:
        """Ids of the pages that hold `past` tokens: the first ⌈past / S⌉ of the sequence's row."""
        last = graph.node("Sub", [self._page_tokens, graph.constant(1)])
        count = graph.node("Div", [graph.node("Add", [past, last]), self._page_tokens])
        row = graph.node("Gather", ["page_table", step])
        return _slice_at(graph, row, graph.constant(0), count)

    def _with_past(
        self, graph: GraphBuilder, pool: str, rows: str, pages: str, span: tuple[str, str, str], *, keys: bool
    ) -> str:
        """K as [KH, 1, D, past + L] or V as [KH, 1, past + L, D]: what lies in the pool, then this step's rows."""
        g = self._geometry
        start, stop, past = span
        axis = 2 if keys else 1
        stored = graph.node("Cast", [graph.node("Gather", [pool, pages])], to=TensorProto.FLOAT)
        ordered = graph.node("Transpose", [stored], perm=[1, 2, 0, 3] if keys else [1, 0, 2, 3])
        flat = [g.kv_heads, g.head_dim, -1] if keys else [g.kv_heads, -1, g.head_dim]
        joined = graph.node("Reshape", [ordered, graph.constant(flat)])
        filled = _slice_at(graph, joined, graph.constant(0), past, axis=axis)
        new = graph.node("Transpose", [_slice_at(graph, rows, start, stop)], perm=[1, 2, 0] if keys else [1, 0, 2])
        return _unsqueeze(graph, graph.node("Concat", [filled, new], axis=axis), 1)

    def _causal(self, graph: GraphBuilder, length: str, past: str) -> str:
        """[L, past + L]: a token sees itself and all before it."""
        column = _unsqueeze(graph, _range(graph, graph.node("Add", [past, length])), 0)
        row = _unsqueeze(graph, graph.node("Add", [_range(graph, length), past]), 1)
        return graph.node("LessOrEqual", [column, row])


def _matmul_nbits(
    graph: GraphBuilder, value: str, codes: NDArray[np.uint8], scales: F32, name: str, *, bits: int
) -> str:
    rows, blocks = scales.shape
    inputs = [value, graph.weight(f"{name}.codes", codes), graph.weight(f"{name}.scales", scales)]
    sizes = {"K": blocks * BLOCK, "N": rows, "bits": bits, "block_size": BLOCK}
    return graph.node("MatMulNBits", inputs, domain=MICROSOFT, accuracy_level=4, **sizes)  # 4: int8 activations


def _info(name: str, element: int, shape: list[int] | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def _range(graph: GraphBuilder, stop: str) -> str:
    return graph.node("Range", [graph.constant(0), stop, graph.constant(1)])


def _scalar(graph: GraphBuilder, vector: str, index: int) -> str:
    return graph.node("Gather", [vector, graph.constant(index)])


def _unsqueeze(graph: GraphBuilder, value: str, axis: int) -> str:
    return graph.node("Unsqueeze", [value, graph.constant([axis])])


def _slice(graph: GraphBuilder, value: str, start: int, stop: int, axis: int) -> str:
    return graph.node("Slice", [value, *(graph.constant([number]) for number in (start, stop, axis))])


def _slice_at(graph: GraphBuilder, value: str, start: str, stop: str, axis: int = 0) -> str:
    """Slice between two scalars that the graph computes."""
    bounds = [_unsqueeze(graph, bound, 0) for bound in (start, stop)]
    return graph.node("Slice", [value, *bounds, graph.constant([axis])])
