"""A Llama of any geometry with random weights, as a real GGUF file and a model of the store: for tests of size.

    python bench/synthetic.py --home DIR [--layers N] [--hidden N] [--heads N] [--kv-heads N] [--head-dim N] [--ff N]
                              [--vocab N] [--untied] [--id ID]

The defaults are a geometry of 1.2 billion weights. Matrices are Q4_1 blocks; what they say means nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmosd.config import default_home
from llmosd.runtime.catalogue import Golden, Manifest, Source
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.gguf_tensors import tensor_shapes
from llmosd.runtime.importer import import_model
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import Backend
from llmosd.runtime.store import sha256
from llmosd.runtime.weights import BLOCK
from tests.reference import Reference

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(0x100 + n) for n in range(256 - len(PRINTABLE))]
LARGE = Geometry(
    layers=16,
    hidden=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    ff=8192,
    vocab=128256,
    context=8192,
    rope_theta=500000.0,
    norm_eps=1e-5,
    bos=0,
    eos=(1,),
)


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
    control = ["<|bos|>", "<|im_end|>"]
    filler = [f"word{n}" for n in range(g.vocab - len(control) - len(ALPHABET))]
    writer.add_token_list([*control, *ALPHABET, *filler])
    writer.add_token_types([3, 3] + [1] * (g.vocab - 2))
    writer.add_token_merges([])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def describe(path: Path, model_id: str) -> Manifest:
    """A manifest of a file, with a continuation that the numpy reference finds."""
    source = GgufFile(path)
    prompt = [int(token) for token in np.random.default_rng(1).integers(2, source.geometry.vocab, 6)]
    continuation = Reference(source, resident=False).greedy(prompt, 2)
    return Manifest(
        id=model_id,
        name=f"random weights, {source.geometry.layers} × {source.geometry.hidden}",
        licence="none",
        source=Source("none", "0", path.name, path.stat().st_size, path.stat().st_size, sha256(path)),
        geometry=source.geometry,
        golden=Golden(tuple(prompt), tuple(continuation)),
    )


def install(
    geometry: Geometry, home: Path, model_id: str, *, tied: bool, backend: Backend = "native"
) -> InstalledModel:
    """Write, describe and import it, the last of which is timed on stderr."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        path = write_gguf(Path(scratch) / "random.gguf", geometry, tied=tied)
        wanted = describe(path, model_id)
        began = time.perf_counter()
        model = import_model(wanted, path, home, backend, lambda stage, done, total: None)
    print(f"imported {wanted.source.bytes / 1e6:.0f} MB in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="install a Llama with random weights")
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--id", default="synthetic")
    parser.add_argument("--untied", action="store_true", help="with an output projection of its own")
    sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ff", "vocab", "context")
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(LARGE, name))
    args = parser.parse_args()
    chosen = {name: getattr(args, name) for name in sizes}
    geometry = Geometry(**chosen, rope_theta=LARGE.rope_theta, norm_eps=LARGE.norm_eps, bos=LARGE.bos, eos=LARGE.eos)
    print(install(geometry, args.home, args.id, tied=not args.untied).path)


if __name__ == "__main__":
    main()
