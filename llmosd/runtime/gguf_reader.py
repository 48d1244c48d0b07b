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
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

from llmosd.errors import ModelError
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Index, Matrix, Symmetric8, stack

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
        try:
            self._reader = _Reader(path)
        except (OSError, ValueError, IndexError) as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if (architecture := self._field("general.architecture", str)) != "llama":
            raise ModelError(f"{path} holds architecture {architecture!r}; only the Llama family can be imported")
        self.tokenizer = self._read_tokenizer()
        self.geometry = self._read_geometry()
        self._refuse_unknown()

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
        value: Any = default if field is None else field.contents()
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind):
            raise ModelError(f"GGUF metadata {name!r} is missing or not of type {kind.__name__}")
        return value

    def _read_geometry(self) -> Geometry:
        heads = self._field("llama.attention.head_count", int)
        hidden = self._field("llama.embedding_length", int)
        head_dim = self._field("llama.attention.key_length", int, hidden // heads)
        self._require("llama.rope.dimension_count", head_dim)
        self._require("llama.attention.value_length", head_dim)
        self._require("llama.expert_count", 0)
        self._require("llama.rope.scaling.type", "none")
        return Geometry(
            layers=self._field("llama.block_count", int),
            hidden=hidden,
            heads=heads,
            kv_heads=self._field("llama.attention.head_count_kv", int, heads),
            head_dim=head_dim,
            ff=self._field("llama.feed_forward_length", int),
            vocab=len(self.tokenizer.tokens),
            context=self._field("llama.context_length", int),
            rope_theta=_shortest(self._field("llama.rope.freq_base", float, 10000.0)),
            norm_eps=_shortest(self._field("llama.attention.layer_norm_rms_epsilon", float)),
            bos=self.tokenizer.bos,
            eos=self._end_tokens(),
        )

    def _require(self, name: str, expected: int | str) -> None:
        if (value := self._field(name, type(expected), expected)) != expected:
            raise ModelError(f"GGUF metadata {name} = {value!r} is not supported (only {expected!r} is)")

    def _read_tokenizer(self) -> TokenizerFacts:
        tokens = tuple(self._field("tokenizer.ggml.tokens", list))
        return TokenizerFacts(
            model=self._field("tokenizer.ggml.model", str),
            pre=self._field("tokenizer.ggml.pre", str, "default"),
            tokens=tokens,
            kinds=tuple(self._field("tokenizer.ggml.token_type", list, [1] * len(tokens))),
            merges=tuple(self._field("tokenizer.ggml.merges", list, [])),
            bos=self._token_id("bos"),
            eos=self._token_id("eos"),
            add_bos=self._field("tokenizer.ggml.add_bos_token", bool, False),
            chat_template=self._field("tokenizer.chat_template", str, ""),
        )

    def _end_tokens(self) -> tuple[int, ...]:
        """The declared end tokens and, as files often declare one of several, control tokens named as one."""
        declared = (token for key in ("eos", "eot", "eom") if (token := self._token_id(key)) is not None)
        facts = self.tokenizer
        named = (
            index
            for index, (token, kind) in enumerate(zip(facts.tokens, facts.kinds, strict=True))
            if kind == CONTROL_TOKEN and token in END_OF_TEXT_NAMES
        )
        return tuple(sorted({*declared, *named}))

    def _token_id(self, role: str) -> int | None:
        token = self._field(f"tokenizer.ggml.{role}_token_id", int, -1)
        return None if token < 0 else token

    # ------------------------------------------------------------ tensors

    def _refuse_unknown(self) -> None:
        layer = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        known = {"token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"}
        known |= {f"blk.{index}.{part}.weight" for index in range(self.geometry.layers) for part in layer}
        if unknown := sorted(self._tensors.keys() - known):
            raise ModelError(f"the file has tensors that a plain Llama has not: {', '.join(unknown[:5])}")

    def _tensor(self, name: str) -> ReaderTensor:
        if name not in self._tensors:
            raise ModelError(f"the GGUF file lacks the tensor {name}")
        return self._tensors[name]

    def _vector(self, name: str) -> F32:
        tensor = self._tensor(name)
        return dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(-1)

    def _matrix(self, name: str) -> Matrix:
        tensor = self._tensor(name)
        columns, rows = (int(size) for size in tensor.shape)
        match tensor.tensor_type:
            case GGMLQuantizationType.Q4_0 | GGMLQuantizationType.Q4_1:
                return _affine4(tensor, rows, columns)
            case GGMLQuantizationType.Q8_0:
                return _symmetric8(tensor, rows, columns)
        return Dense(dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(rows, columns))


def half_split_rows(heads: int, head_dim: int) -> Index:
    """Rows of q or k in half-split rotary order: GGUF stores the two halves of each head interleaved."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _shortest(value: float) -> float:
    """The decimal that was meant by a float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _affine4(tensor: ReaderTensor, rows: int, columns: int) -> Affine4:
    """A block is a float16 scale, for Q4_1 a float16 minimum, then 16 bytes: low nibbles first, high ones after."""
    head = 2 if tensor.tensor_type is GGMLQuantizationType.Q4_0 else 4
    blocks = np.asarray(tensor.data).reshape(rows, columns // BLOCK, head + BLOCK // 2)
    nibbles = blocks[..., head:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(rows, columns)
    scales = _float16(blocks[..., 0:2])
    return Affine4(codes, scales, -8 * scales if head == 2 else _float16(blocks[..., 2:4]))


def _symmetric8(tensor: ReaderTensor, rows: int, columns: int) -> Symmetric8:
    """A block is a float16 scale, then 32 signed bytes."""
    blocks = np.asarray(tensor.data).reshape(rows, columns // BLOCK, 2 + BLOCK)
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(rows, columns)
    return Symmetric8(codes, _float16(blocks[..., 0:2]))


def _float16(pairs: NDArray[np.uint8]) -> F32:
    return np.ascontiguousarray(pairs).view(np.float16)[..., 0].astype(np.float32)
