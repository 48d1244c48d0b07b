"""A Llama of any geometry with random weights, as a real GGUF file and a model of the store: for tests of size."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from llmosd.errors import InvalidRequest
from llmosd.runtime.backend import Backend
from llmosd.runtime.catalogue import Golden, Manifest, Source
from llmosd.runtime.fetch import Progress
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.gguf_tensors import tensor_shapes
from llmosd.runtime.importer import import_model
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.reference import Reference
from llmosd.runtime.store import sha256
from llmosd.runtime.weights import BLOCK

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(0x100 + n) for n in range(256 - len(PRINTABLE))]
CONTROL = ("<|bos|>", "<|im_end|>")
CHAT = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
GOLDEN_PROMPT, GOLDEN_TOKENS = 6, 2


def check_geometry(geometry: Geometry) -> None:
    """Raises InvalidRequest for sizes that no Llama has or no block of weights fits."""
    g = geometry
    for item in fields(g):
        size = getattr(g, item.name)
        if isinstance(size, int) and item.name != "bos" and size < 1:
            raise InvalidRequest(f"{item.name} must be at least 1, not {size}", param=item.name)
    for name, size in (("hidden", g.hidden), ("ff", g.ff), ("heads × head_dim", g.heads * g.head_dim)):
        if size % BLOCK:
            raise InvalidRequest(f"{name} is {size}: weights come in blocks of {BLOCK}", param=name)
    if g.heads % g.kv_heads or g.head_dim % 2:
        raise InvalidRequest("heads must be a multiple of kv_heads, and head_dim even", param="heads")
    if g.vocab < (least := len(CONTROL) + len(ALPHABET)):
        raise InvalidRequest(f"vocab must be at least {least}: all bytes are in it", param="vocab")


def write_gguf(path: Path, geometry: Geometry, *, tied: bool) -> Path:
    """Tensor by tensor, so that it needs little memory. `tied` leaves the output projection to the embedding."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_metadata(writer, geometry)
    absent = {"rope_freqs.weight"} | ({"output.weight"} if tied else set())
    shapes = {name: shape for name, shape in tensor_shapes(geometry).items() if name not in absent}
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            packed = (shape[0], shape[1] // BLOCK * 20)
            writer.add_tensor_info(name, packed, np.dtype(np.uint8), packed[0] * packed[1], Kind.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for shape in shapes.values():
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else _blocks(rng, *shape))
    writer.close()
    return path


def _blocks(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Q4_1 of weights that leave a vector of unit variance so: a float16 scale and minimum, then 32 codes."""
    blocks = rng.integers(0, 256, (rows, columns // BLOCK, 20), np.uint8)
    scale = 1 / np.sqrt(columns) / np.std(np.arange(16))
    blocks[..., :4] = np.array([scale, -7.5 * scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _write_metadata(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    g = geometry
    writer.add_block_count(g.layers)
    writer.add_embedding_length(g.hidden)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_key_length(g.head_dim)
    writer.add_value_length(g.head_dim)
    writer.add_feed_forward_length(g.ff)
    writer.add_context_length(g.context)
    writer.add_layer_norm_rms_eps(g.norm_eps)
    writer.add_rope_freq_base(g.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    filler = [f"word{n}" for n in range(g.vocab - len(CONTROL) - len(ALPHABET))]
    writer.add_token_list([*CONTROL, *ALPHABET, *filler])
    writer.add_token_types([3, 3] + [1] * (g.vocab - 2))
    writer.add_token_merges([])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)


def describe(path: Path, model_id: str, page_tokens: int = 0) -> Manifest:
    """A manifest of a file, with a continuation that the numpy reference finds."""
    source = GgufFile(path)
    prompt = [int(token) for token in np.random.default_rng(1).integers(2, source.geometry.vocab, GOLDEN_PROMPT)]
    continuation = Reference(source, resident=False).greedy(prompt, GOLDEN_TOKENS)
    return Manifest(
        id=model_id,
        name=f"random weights, {source.geometry.layers} × {source.geometry.hidden}",
        licence="none",
        source=Source("none", "0", path.name, path.stat().st_size, path.stat().st_size, sha256(path)),
        geometry=source.geometry,
        golden=Golden(tuple(prompt), tuple(continuation)),
        page_tokens=page_tokens,
    )


def install(
    geometry: Geometry,
    home: Path,
    model_id: str,
    *,
    tied: bool,
    backend: Backend = "native",
    page_tokens: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> InstalledModel:
    """Write, describe and import it, as any other model. Raises InvalidRequest, ModelError."""
    check_geometry(geometry)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        path = write_gguf(Path(scratch) / "random.gguf", geometry, tied=tied)
        return import_model(describe(path, model_id, page_tokens), path, home, backend, progress)
