"""A Llama small enough to build in a test: random weights in any tensor format, written as a real GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
from gguf import GGMLQuantizationType as Kind

from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.graph.llama import build_llama
from llmosd.runtime.importer import operators_of
from llmosd.runtime.paged_model import Backend, PagedModel
from llmosd.types import KvFormat, WeightFormat

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FF, CONTEXT = 2, 96, 3, 1, 32, 160, 256
BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
ALPHABET = [chr(byte) for byte in BYTES] + [chr(0x100 + n) for n in range(256 - len(BYTES))]
TOKENS = [*ALPHABET, "he", "ll", "hell", "<|bos|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll"]
BOS, EOS = len(TOKENS) - 2, len(TOKENS) - 1


def write_tiny(
    path: Path,
    kind: Kind,
    *,
    value_kind: Kind | None = None,
    tied: bool = True,
    architecture: str = "llama",
    pre: str = "gpt-2",
    metadata: dict[str, int] | None = None,
    extra_tensor: str | None = None,
) -> Path:
    """`value_kind` is the format of v where it differs, as K-quant mixes have it. Other arguments break the file."""
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, pre)
    for name, number in (metadata or {}).items():
        writer.add_uint32(name, number)
    rng = np.random.default_rng(0)
    for name, shape in _shapes(tied).items():
        values = rng.normal(0, 1.5 / np.sqrt(shape[-1]), shape).astype(np.float32)
        if name.endswith("norm.weight"):
            writer.add_tensor(name, 1 + values)
        else:
            _write_matrix(writer, name, values, value_kind if value_kind and "attn_v" in name else kind)
    if extra_tensor:
        writer.add_tensor(extra_tensor, np.zeros(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_feed_forward_length(FF)
    writer.add_context_length(CONTEXT)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)


def _shapes(tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        shapes |= {
            f"{name}attn_norm.weight": (HIDDEN,),
            f"{name}attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{name}attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{name}ffn_norm.weight": (HIDDEN,),
            f"{name}ffn_gate.weight": (FF, HIDDEN),
            f"{name}ffn_up.weight": (FF, HIDDEN),
            f"{name}ffn_down.weight": (HIDDEN, FF),
        }
    return shapes


def _write_matrix(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: Kind) -> None:
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def load(
    graph: Path,
    source: GgufFile,
    backend: Backend,
    weights: WeightFormat,
    *,
    pages: int,
    page_tokens: int,
    spin: bool = False,
    kv_format: KvFormat = "float32",
    strict: bool = False,
) -> PagedModel:
    """The model of `source` on two threads; its graph is built and checked unless it is there."""
    if not graph.exists():
        build_llama(source, operators_of(backend, float32=weights == "float32"), graph, lambda layers: None)
        onnx.checker.check_model(graph)
    return PagedModel(
        graph,
        source.geometry,
        backend=backend,
        weights=weights,
        pages=pages,
        page_tokens=page_tokens,
        threads=2,
        spin=spin,
        kv_format=kv_format,
        strict=strict,
    )
