"""A plain float32 Llama in numpy: the oracle that graphs are compared with. No cache, no batching, no cleverness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.gguf_reader import Layer as PackedLayer

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's weights, transposed for a product from the left."""

    attention_norm: F32
    qkv: F32
    output: F32
    ffn_norm: F32
    gate_up: F32
    down: F32

    @classmethod
    def expanded(cls, layer: PackedLayer) -> Layer:
        return cls(
            layer.attention_norm,
            layer.qkv.dense().T,
            layer.output.dense().T,
            layer.ffn_norm,
            layer.gate_up.dense().T,
            layer.down.dense().T,
        )


class Reference:
    """Weights are the file's own, expanded to float32; unless `resident`, a layer's at a time."""

    def __init__(self, source: GgufFile, *, resident: bool = True) -> None:
        self.geometry = source.geometry
        self.embedding = source.embedding().dense()
        self.head = source.head().dense().T
        self.final_norm = source.final_norm()
        self._source = source
        self._resident = list(self._expanded()) if resident else None
        self.cos, self.sin = source.rotary_tables()

    def _expanded(self) -> Iterator[Layer]:
        return (Layer.expanded(self._source.layer(index)) for index in range(self.geometry.layers))

    def logits(self, tokens: Sequence[int]) -> F32:
        """Logits [T, vocab] after each token of one sequence that starts at position 0."""
        hidden = self.embedding[np.asarray(tokens)]
        for layer in self._resident or self._expanded():
            qkv = self.norm(hidden, layer.attention_norm) @ layer.qkv
            hidden = hidden + self.attention(qkv) @ layer.output
            gate, up = np.split(self.norm(hidden, layer.ffn_norm) @ layer.gate_up, 2, axis=1)
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ layer.down
        logits: F32 = self.norm(hidden, self.final_norm) @ self.head
        return logits

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation, token by token, everything computed anew each time."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def norm(self, value: F32, gain: F32) -> F32:
        mean_square = np.mean(value * value, axis=-1, keepdims=True)
        scaled: F32 = value / np.sqrt(mean_square + np.float32(self.geometry.norm_eps)) * gain
        return scaled

    def attention(self, qkv: F32) -> F32:
        g = self.geometry
        heads = qkv.reshape(len(qkv), g.heads + 2 * g.kv_heads, g.head_dim)
        query = self.rotate(heads[:, : g.heads])
        key = self.rotate(heads[:, g.heads : g.heads + g.kv_heads]).repeat(g.heads // g.kv_heads, axis=1)
        value = heads[:, g.heads + g.kv_heads :].repeat(g.heads // g.kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key) / np.float32(np.sqrt(g.head_dim))
        scores = np.where(np.tri(len(qkv), dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: F32 = np.einsum("hqk,khd->qhd", weights, value).reshape(len(qkv), -1)
        return mixed

    def rotate(self, value: F32) -> F32:
        """Rotary embedding; the pairs are (i, i + D/2)."""
        cos, sin = self.cos[: len(value), None], self.sin[: len(value), None]
        low, high = np.split(value, 2, axis=2)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)
