"""Small index arithmetic on graph values, in ONNX operators; scalars are int64 of rank 0."""

from __future__ import annotations

from llmosd.runtime.graph.builder import GraphBuilder


def count_to(graph: GraphBuilder, stop: str) -> str:
    """0 … stop − 1."""
    return graph.node("Range", [graph.constant(0), stop, graph.constant(1)])


def item(graph: GraphBuilder, vector: str, index: int) -> str:
    return graph.node("Gather", [vector, graph.constant(index)])


def unsqueeze(graph: GraphBuilder, value: str, axis: int) -> str:
    return graph.node("Unsqueeze", [value, graph.constant([axis])])


def slice_fixed(graph: GraphBuilder, value: str, start: int, stop: int, axis: int) -> str:
    return graph.node("Slice", [value, *(graph.constant([number]) for number in (start, stop, axis))])


def slice_computed(graph: GraphBuilder, value: str, start: str, stop: str, axis: int = 0) -> str:
    """Slice between two scalars that the graph computes."""
    bounds = [unsqueeze(graph, bound, 0) for bound in (start, stop)]
    return graph.node("Slice", [value, *bounds, graph.constant([axis])])
