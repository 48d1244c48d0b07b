"""Paged attention in ONNX Runtime's own operators: sequence by sequence, over gathered pages.

A Loop runs over the sequences of a step and gathers exactly the pages that each has filled, so nothing is padded and
nothing outside them is ever read. The pool cannot be written from inside the graph: the new K and V rows come out as
`key_rows.i` and `value_rows.i` [T, KH, D].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import GraphBuilder
from llmosd.runtime.graph.shapes import count_to, item, slice_computed, slice_fixed, unsqueeze
from llmosd.runtime.weights import F32

INT64_MAX = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Span:
    """Scalars of the loop's current sequence: its packed tokens are start … stop − 1, after `past` stored ones."""

    start: str
    stop: str
    past: str
    pages: str  # ids of the pages that hold the stored tokens


class GatherAttention:
    """Holds what all layers share: positions, rotary rows, lengths."""

    def __init__(self, graph: GraphBuilder, geometry: Geometry, rotary: tuple[F32, F32]) -> None:
        self._graph, self._geometry = graph, geometry
        self._cumulative = graph.node("Cast", ["cumulative_lengths"], to=TensorProto.INT64)
        self._past = graph.node("Cast", ["past_lengths"], to=TensorProto.INT64)
        positions = self._positions()
        cos, sin = graph.weight("rotary.cos", rotary[0]), graph.weight("rotary.sin", rotary[1])
        self._cos = unsqueeze(graph, graph.node("Gather", [cos, positions]), 1)
        self._sin = unsqueeze(graph, graph.node("Gather", [sin, positions]), 1)
        self._sequences = graph.node("Size", ["past_lengths"])
        self._page_tokens = item(graph, graph.node("Shape", ["value_cache.0"]), 2)

    def attend(self, qkv: str, layer: int) -> str:
        """Attended rows [T, H·D] of q|k|v rows [T, (H + 2·KH)·D]."""
        graph, g = self._graph, self._geometry
        turned, total = g.heads + g.kv_heads, g.heads + 2 * g.kv_heads
        heads = graph.node("Reshape", [qkv, graph.constant([-1, total, g.head_dim])])
        query, keys, values = graph.name("query"), f"key_rows.{layer}", f"value_rows.{layer}"
        rotated = self._rotate(slice_fixed(graph, heads, 0, turned, axis=1))
        graph.node("Split", [rotated, graph.constant([g.heads, g.kv_heads])], outputs=[query, keys], axis=1)
        graph.node("Identity", [slice_fixed(graph, heads, turned, total, axis=1)], outputs=[values])
        for name in (keys, values):
            graph.output(name, TensorProto.FLOAT, ["T", g.kv_heads, g.head_dim])
        no_rows = graph.weight("no_rows", np.zeros((0, g.heads * g.head_dim), np.float32))
        return graph.node("Loop", [self._sequences, "", no_rows], body=self._body(query, layer))

    def _positions(self) -> str:
        """Place of every packed token in its own sequence, [T]."""
        graph = self._graph
        token = count_to(graph, graph.node("Size", ["token_ids"]))
        ends = slice_fixed(graph, self._cumulative, 1, INT64_MAX, axis=0)
        passed = graph.node("GreaterOrEqual", [unsqueeze(graph, token, 1), unsqueeze(graph, ends, 0)])
        counts = graph.node("Cast", [passed], to=TensorProto.INT64)
        sequence = graph.node("ReduceSum", [counts, graph.constant([1])], keepdims=0)
        start = graph.node("Gather", [self._cumulative, sequence])
        past = graph.node("Gather", [self._past, sequence])
        return graph.node("Add", [graph.node("Sub", [token, start]), past])

    def _rotate(self, value: str) -> str:
        """Rotary embedding with each head's halves as the pairs, value [T, heads, D]."""
        graph, half = self._graph, self._geometry.head_dim // 2
        a, b = slice_fixed(graph, value, 0, half, axis=2), slice_fixed(graph, value, half, 2 * half, axis=2)
        low = graph.node("Sub", [graph.node("Mul", [a, self._cos]), graph.node("Mul", [b, self._sin])])
        high = graph.node("Add", [graph.node("Mul", [b, self._cos]), graph.node("Mul", [a, self._sin])])
        return graph.node("Concat", [low, high], axis=2)

    def _body(self, query: str, layer: int) -> GraphProto:
        """Append one sequence's attended rows [L, H·D] to those before."""
        graph = self._graph
        index, go, rows, next_go, next_rows = (graph.name(stem) for stem in ("index", "go", "rows", "go", "rows"))
        with graph.body() as nodes:
            attended = self._one_sequence(query, layer, self._span(index))
            graph.node("Identity", [go], outputs=[next_go])
            graph.node("Concat", [rows, attended], outputs=[next_rows], axis=0)
        inputs = [_value(index, TensorProto.INT64), _value(go, TensorProto.BOOL), _rows(rows)]
        return helper.make_graph(nodes, f"layer.{layer}", inputs, [_value(next_go, TensorProto.BOOL), _rows(next_rows)])

    def _span(self, index: str) -> Span:
        graph = self._graph
        start = graph.node("Gather", [self._cumulative, index])
        stop = graph.node("Gather", [self._cumulative, graph.node("Add", [index, graph.constant(1)])])
        past = graph.node("Gather", [self._past, index])
        most = graph.node("Sub", [self._page_tokens, graph.constant(1)])
        filled = graph.node("Div", [graph.node("Add", [past, most]), self._page_tokens])
        row = graph.node("Gather", ["page_table", index])
        return Span(start, stop, past, slice_computed(graph, row, graph.constant(0), filled))

    def _one_sequence(self, query: str, layer: int, span: Span) -> str:
        graph, g = self._graph, self._geometry
        groups = [-1, g.kv_heads, g.heads // g.kv_heads, g.head_dim]
        grouped = graph.node("Reshape", [slice_computed(graph, query, span.start, span.stop), graph.constant(groups)])
        scale = graph.weight("attention.scale", np.array(g.head_dim**-0.5, np.float32))
        scaled = graph.node("Mul", [graph.node("Transpose", [grouped], perm=[1, 2, 0, 3]), scale])  # [KH, G, L, D]
        scores = graph.node("MatMul", [scaled, self._keys(layer, span)])
        hidden = graph.weight("attention.hidden", np.array(-np.inf, np.float32))
        weights = graph.node("Softmax", [graph.node("Where", [self._visible(span), scores, hidden])], axis=-1)
        mixed = graph.node("MatMul", [weights, self._values(layer, span)])
        return graph.node(
            "Reshape",
            [graph.node("Transpose", [mixed], perm=[2, 0, 1, 3]), graph.constant([-1, g.heads * g.head_dim])],
        )

    def _keys(self, layer: int, span: Span) -> str:
        """[KH, 1, D, past + L]: what lies in the pool, then this step's."""
        g = self._geometry
        stored = self._stored(f"key_cache.{layer}", span, [1, 2, 0, 3], [g.kv_heads, g.head_dim, -1], axis=2)
        return self._with_new(stored, f"key_rows.{layer}", span, [1, 2, 0], axis=2)

    def _values(self, layer: int, span: Span) -> str:
        """[KH, 1, past + L, D]."""
        g = self._geometry
        stored = self._stored(f"value_cache.{layer}", span, [1, 0, 2, 3], [g.kv_heads, -1, g.head_dim], axis=1)
        return self._with_new(stored, f"value_rows.{layer}", span, [1, 0, 2], axis=1)

    def _stored(self, pool: str, span: Span, order: list[int], joined: list[int], axis: int) -> str:
        """The filled part of a sequence's pages, joined along its tokens."""
        graph = self._graph
        pages = graph.node("Cast", [graph.node("Gather", [pool, span.pages])], to=TensorProto.FLOAT)
        ordered = graph.node("Transpose", [pages], perm=order)
        flat = graph.node("Reshape", [ordered, graph.constant(joined)])
        return slice_computed(graph, flat, graph.constant(0), span.past, axis=axis)

    def _with_new(self, stored: str, rows: str, span: Span, order: list[int], axis: int) -> str:
        graph = self._graph
        new = graph.node("Transpose", [slice_computed(graph, rows, span.start, span.stop)], perm=order)
        return unsqueeze(graph, graph.node("Concat", [stored, new], axis=axis), 1)

    def _visible(self, span: Span) -> str:
        """[L, past + L]: a token sees itself and all before it."""
        graph = self._graph
        length = graph.node("Sub", [span.stop, span.start])
        column = unsqueeze(graph, count_to(graph, graph.node("Add", [span.past, length])), 0)
        row = unsqueeze(graph, graph.node("Add", [count_to(graph, length), span.past]), 1)
        return graph.node("LessOrEqual", [column, row])


def _value(name: str, element: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, [])


def _rows(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
