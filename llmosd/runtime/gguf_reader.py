"""Read a Llama-family GGUF file: geometry, weights in their own format, the tokenizer's facts.

Everything follows from the file's metadata and tensor shapes, nothing from a model's name. What this reader does
not understand (another architecture, experts, biases, a partial rotary, an unknown tensor) is refused rather than
ignored, for a graph that leaves a tensor out would answer wrongly without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from llmosd.errors import ModelError
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_tensors import OPTIONAL_TENSORS, half_split_rows, read_dense, read_matrix, tensor_shapes
from llmosd.runtime.weights import F32, Matrix, stack

END_OF_TEXT_NAMES = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>"})
CONTROL_TOKEN = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What GGUF says of a tokenizer. `kinds` are GGML token types: 1 normal, 3 control, 4 user defined …"""

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    eos: int | None
    add_bos: bool
    chat_template: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's weights; q and k rows are in half-split rotary order, q|k|v and gate|up are fused."""

    attention_norm: F32
    qkv: Matrix
    output: Matrix
    ffn_norm: F32
    gate_up: Matrix
    down: Matrix


class _Reader(GGUFReader):
    """GGUFReader on a plain view of its memory map: slicing `numpy.memmap`, as it does per token, is 3 times slower."""

    @property  # type: ignore[override]
    def data(self) -> NDArray[np.uint8]:
        return self._data

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self._data = mapped.view(np.ndarray)


class GgufFile:
    """A memory-mapped GGUF file of architecture `llama`. Raises ModelError for anything it cannot serve exactly."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size if path.is_file() else 0  # bytes
        try:
            self._reader = _Reader(path)
        except (OSError, ValueError, IndexError, OverflowError) as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if (architecture := self._field("general.architecture", str)) != "llama":
            raise ModelError(f"{path} holds architecture {architecture!r}; only the Llama family can be imported")
        self.tokenizer = self._read_tokenizer()
        self.geometry = self._read_geometry()
        self._check_tensors()

    def embedding(self) -> Matrix:
        return self._matrix("token_embd.weight")

    def head(self) -> Matrix:
        """Output projection [vocab, hidden]; the embedding itself where a file ties them."""
        return self._matrix("output.weight" if "output.weight" in self._tensors else "token_embd.weight")

    def final_norm(self) -> F32:
        return self._vector("output_norm.weight")

    def layer(self, index: int) -> Layer:
        name = f"blk.{index}."
        g = self.geometry
        q = self._matrix(name + "attn_q.weight").rows(half_split_rows(g.heads, g.head_dim))
        k = self._matrix(name + "attn_k.weight").rows(half_split_rows(g.kv_heads, g.head_dim))
        return Layer(
            attention_norm=self._vector(name + "attn_norm.weight"),
            qkv=stack([q, k, self._matrix(name + "attn_v.weight")]),
            output=self._matrix(name + "attn_output.weight"),
            ffn_norm=self._vector(name + "ffn_norm.weight"),
            gate_up=stack([self._matrix(name + "ffn_gate.weight"), self._matrix(name + "ffn_up.weight")]),
            down=self._matrix(name + "ffn_down.weight"),
        )

    def rotary_tables(self) -> tuple[F32, F32]:
        """cos and sin of every position's rotation, [context, head_dim / 2] each."""
        g = self.geometry
        inverse = g.rope_theta ** -(np.arange(0, g.head_dim, 2) / g.head_dim)
        if "rope_freqs.weight" in self._tensors:  # Llama 3's frequency scaling, stored as divisors
            inverse = inverse / self._vector("rope_freqs.weight").astype(np.float64)
        angles = np.outer(np.arange(g.context), inverse)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    # ------------------------------------------------------------ metadata

    def _field(self, name: str, kind: type[T], default: T | None = None) -> T:
        field = self._reader.fields.get(name)
        try:
            value: Any = default if field is None else field.contents()
        except (ValueError, IndexError) as error:
            raise ModelError(f"GGUF metadata {name!r} is damaged: {error}") from error
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind):
            raise ModelError(f"GGUF metadata {name!r} is missing or not of type {kind.__name__}")
        return value

    def _read_geometry(self) -> Geometry:
        heads = self._size("llama.attention.head_count")
        hidden = self._size("llama.embedding_length")
        head_dim = self._size("llama.attention.key_length", hidden // heads)
        self._require("llama.rope.dimension_count", head_dim)
        self._require("llama.attention.value_length", head_dim)
        self._require("llama.expert_count", 0)
        self._require("llama.rope.scaling.type", "none")
        return Geometry(
            layers=self._size("llama.block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=self._size("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            ff=self._size("llama.feed_forward_length"),
            vocab=len(self.tokenizer.tokens),
            context=self._size("llama.context_length"),
            rope_theta=_shortest(self._field("llama.rope.freq_base", float, 10000.0)),
            norm_eps=_shortest(self._field("llama.attention.layer_norm_rms_epsilon", float)),
            bos=self.tokenizer.bos,
            eos=self._end_tokens(),
        )

    def _list(self, name: str, kind: type[T], default: list[T] | None = None) -> tuple[T, ...]:
        values = self._field(name, list, default)
        if not all(isinstance(value, kind) for value in values):
            raise ModelError(f"GGUF metadata {name!r} is not a list of {kind.__name__}")
        return tuple(values)

    def _size(self, name: str, default: int | None = None) -> int:
        if (size := self._field(name, int, default)) < 1:
            raise ModelError(f"GGUF metadata {name} = {size} is not a size")
        return size

    def _require(self, name: str, expected: int | str) -> None:
        if (value := self._field(name, type(expected), expected)) != expected:
            raise ModelError(f"GGUF metadata {name} = {value!r} is not supported (only {expected!r} is)")

    def _read_tokenizer(self) -> TokenizerFacts:
        tokens = self._list("tokenizer.ggml.tokens", str)
        kinds = self._list("tokenizer.ggml.token_type", int, [1] * len(tokens))
        if len(kinds) != len(tokens):
            raise ModelError(f"the GGUF file has {len(tokens)} tokens, but {len(kinds)} token types")
        return TokenizerFacts(
            model=self._field("tokenizer.ggml.model", str),
            pre=self._field("tokenizer.ggml.pre", str, "default"),
            tokens=tokens,
            kinds=kinds,
            merges=self._list("tokenizer.ggml.merges", str, []),
            bos=self._token_id("bos", len(tokens)),
            eos=self._token_id("eos", len(tokens)),
            add_bos=self._field("tokenizer.ggml.add_bos_token", bool, False),
            chat_template=self._field("tokenizer.chat_template", str, ""),
        )

    def _end_tokens(self) -> tuple[int, ...]:
        """The declared end tokens and, as files often declare one of several, control tokens named as one."""
        facts = self.tokenizer
        known = len(facts.tokens)
        declared = (token for key in ("eos", "eot", "eom") if (token := self._token_id(key, known)) is not None)
        named = (
            index
            for index, (token, kind) in enumerate(zip(facts.tokens, facts.kinds, strict=True))
            if kind == CONTROL_TOKEN and token in END_OF_TEXT_NAMES
        )
        return tuple(sorted({*declared, *named}))

    def _token_id(self, role: str, vocab: int) -> int | None:
        token = self._field(f"tokenizer.ggml.{role}_token_id", int, -1)
        if token >= vocab:
            raise ModelError(f"GGUF metadata names token {token} as {role}, but there are {vocab} tokens")
        return None if token < 0 else token

    # ------------------------------------------------------------ tensors

    def _check_tensors(self) -> None:
        if self.geometry.layers > len(self._tensors):  # before a table of so many is made
            raise ModelError(f"the file says {self.geometry.layers} layers and has {len(self._tensors)} tensors")
        shapes = tensor_shapes(self.geometry)
        if unknown := sorted(self._tensors.keys() - shapes.keys()):
            raise ModelError(f"the file has tensors that a plain Llama has not: {', '.join(unknown[:5])}")
        if missing := sorted(shapes.keys() - self._tensors.keys() - OPTIONAL_TENSORS):
            raise ModelError(f"the GGUF file lacks the tensors {', '.join(missing[:5])}")
        for name, tensor in self._tensors.items():
            if (shape := tuple(int(size) for size in reversed(tensor.shape))) != shapes[name]:
                raise ModelError(f"tensor {name} has the shape {shape}, but the geometry says {shapes[name]}")

    def _vector(self, name: str) -> F32:
        return read_dense(self._tensors[name]).reshape(-1)

    def _matrix(self, name: str) -> Matrix:
        return read_matrix(self._tensors[name])


def _shortest(value: float) -> float:
    """The decimal that was meant by a float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))
