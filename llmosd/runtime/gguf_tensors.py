"""Tensors of a Llama-family GGUF file: which there are, of what shape, and their values in the file's own format."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, ReaderTensor, dequantize
from numpy.typing import NDArray

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.weights import BLOCK, F32, Affine4, Dense, Index, Matrix, Symmetric8

OPTIONAL_TENSORS = frozenset({"output.weight", "rope_freqs.weight"})


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """By name, outermost dimension first: rows are outputs."""
    g = geometry
    whole = {
        "token_embd.weight": (g.vocab, g.hidden),
        "output.weight": (g.vocab, g.hidden),
        "output_norm.weight": (g.hidden,),
        "rope_freqs.weight": (g.head_dim // 2,),
    }
    block = {
        "attn_norm": (g.hidden,),
        "attn_q": (g.heads * g.head_dim, g.hidden),
        "attn_k": (g.kv_heads * g.head_dim, g.hidden),
        "attn_v": (g.kv_heads * g.head_dim, g.hidden),
        "attn_output": (g.hidden, g.heads * g.head_dim),
        "ffn_norm": (g.hidden,),
        "ffn_gate": (g.ff, g.hidden),
        "ffn_up": (g.ff, g.hidden),
        "ffn_down": (g.hidden, g.ff),
    }
    blocks = {f"blk.{index}.{part}.weight": shape for index in range(g.layers) for part, shape in block.items()}
    return whole | blocks


def half_split_rows(heads: int, head_dim: int) -> Index:
    """Rows of q or k in half-split rotary order: GGUF stores the two halves of each head interleaved."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def read_dense(tensor: ReaderTensor) -> F32:
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def read_matrix(tensor: ReaderTensor) -> Matrix:
    columns, rows = (int(size) for size in tensor.shape)
    match tensor.tensor_type:
        case GGMLQuantizationType.Q4_0 | GGMLQuantizationType.Q4_1:
            return _affine4(tensor, rows, columns)
        case GGMLQuantizationType.Q8_0:
            return _symmetric8(tensor, rows, columns)
    return Dense(read_dense(tensor).reshape(rows, columns))


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
