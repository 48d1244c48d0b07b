"""A decoder layer in operators that do one thing each: norms, products, gates and sums follow each other."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from llmosd.runtime.graph.builder import MICROSOFT, GraphBuilder
from llmosd.runtime.graph.llama import Norm, Stream
from llmosd.runtime.weights import Matrix


class SeparateOperators(ABC):
    """The residual stream is one value, or two of which the next norm makes the sum on its way."""

    @abstractmethod
    def linear(self, graph: GraphBuilder, value: str, matrix: Matrix, name: str) -> str: ...

    @abstractmethod
    def swiglu(self, graph: GraphBuilder, gate_up: str) -> str: ...

    def widen(self, graph: GraphBuilder, value: str) -> str:
        """The float32 of what `linear` gave."""
        return value

    def normed_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        normed, total = _normed(graph, stream, norm)
        return self.linear(graph, normed, matrix, name), (total,)

    def gated_linear(
        self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, name: str
    ) -> tuple[str, Stream]:
        gate_up, stream = self.normed_linear(graph, stream, norm, matrix, name)
        return self.swiglu(graph, gate_up), stream

    def add_linear(self, graph: GraphBuilder, stream: Stream, value: str, matrix: Matrix, name: str) -> Stream:
        return *stream, self.widen(graph, self.linear(graph, value, matrix, name))

    def logits(self, graph: GraphBuilder, stream: Stream, norm: Norm, matrix: Matrix, output: str) -> None:
        product, _ = self.normed_linear(graph, stream, norm, matrix, "head")
        graph.node("Identity", [self.widen(graph, product)], outputs=[output])


def _normed(graph: GraphBuilder, stream: Stream, norm: Norm) -> tuple[str, str]:
    """(norm of the stream, the stream as one value)."""
    gain = graph.weight(norm.name, norm.gain)
    if len(stream) == 1:
        return _norm(graph, stream[0], gain, norm.epsilon), stream[0]
    normed, total = graph.name("normed"), graph.name("residual")
    graph.node(
        "SkipSimplifiedLayerNormalization",
        [*stream, gain],
        domain=MICROSOFT,
        outputs=[normed, "", "", total],
        epsilon=norm.epsilon,
    )
    return normed, total


def _norm(graph: GraphBuilder, value: str, gain: str, epsilon: float) -> str:
    """In standard operators: the fused ones need a residual to add."""
    square = graph.node("Mul", [value, value])
    mean = graph.node("ReduceMean", [square, graph.constant([-1])], keepdims=1)
    shifted = graph.node("Add", [mean, graph.weight("epsilon", np.array(epsilon, np.float32))])
    normed = graph.node("Div", [value, graph.node("Sqrt", [shifted])])
    return graph.node("Mul", [normed, gain])
