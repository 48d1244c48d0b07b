"""The sizes that fix a Llama-family model: what a graph, a page pool and a reference are built from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """`context` is in tokens; `eos` holds every token that ends a text; `bos` is None where a model has none."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    bos: int | None
    eos: tuple[int, ...]

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim
