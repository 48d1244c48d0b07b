"""A Llama-family GGUF file as a Hugging Face model directory, weights in float32: what ONNX Runtime GenAI builds from.

python bench/peers/export.py SOURCE.gguf TOKENIZER.json DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from gguf import GGUFReader

from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.gguf_tensors import half_split_rows, read_dense
from llmosd.runtime.weights import F32

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensors(source: Path, geometry: Geometry) -> dict[str, F32]:
    """All weights by Hugging Face's names; rows of q and k are put in half-split rotary order."""
    found = {}
    for tensor in GGUFReader(source).tensors:
        values = read_dense(tensor).reshape([int(size) for size in reversed(tensor.shape)])
        name = tensor.name.removesuffix(".weight")
        if name in OUTSIDE:
            found[f"{OUTSIDE[name]}.weight"] = values
            continue
        _, layer, part = name.split(".")
        heads = {"attn_q": geometry.heads, "attn_k": geometry.kv_heads}.get(part)
        rows = values[half_split_rows(heads, geometry.head_dim)] if heads else values
        found[f"model.layers.{layer}.{INSIDE[part]}.weight"] = rows
    return found


def configuration(g: Geometry, tied: bool) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": g.hidden,
        "intermediate_size": g.ff,
        "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads,
        "num_key_value_heads": g.kv_heads,
        "head_dim": g.head_dim,
        "vocab_size": g.vocab,
        "max_position_embeddings": g.context,
        "rope_theta": g.rope_theta,
        "rms_norm_eps": g.norm_eps,
        "bos_token_id": g.bos,
        "eos_token_id": list(g.eos),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }


def write_safetensors(path: Path, weights: dict[str, F32]) -> None:
    """The format is a length, a JSON header with each tensor's place, and the tensors' bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": (place, place + values.nbytes)}
        place += values.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in weights.values():
            file.write(values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    geometry = GgufFile(options.source).geometry
    weights = tensors(options.source, geometry)
    write_safetensors(options.directory / "model.safetensors", weights)
    config = configuration(geometry, tied="lm_head.weight" not in weights)
    (options.directory / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copy(options.tokenizer, options.directory / "tokenizer.json")
    (options.directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


if __name__ == "__main__":
    main()
