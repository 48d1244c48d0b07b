"""The reader: geometry and weights of any plain Llama, exactly; everything else refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from llmosd.errors import ModelError
from llmosd.runtime.catalogue import manifest
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.gguf_tensors import half_split_rows
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.tokenizer import tokenizer_json
from llmosd.runtime.weights import Affine4, Dense, Symmetric8, to_symmetric8
from tests.runtime import tiny

FORMATS = {
    Kind.Q4_0: Affine4,
    Kind.Q4_1: Affine4,
    Kind.Q8_0: Symmetric8,
    Kind.Q5_0: Dense,
    Kind.F16: Dense,
    Kind.F32: Dense,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_exactly_those_of_the_file(kind: Kind, tmp_path: Path) -> None:
    path = tiny.write_tiny(tmp_path / "tiny.gguf", kind)
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    source = GgufFile(path)
    layer = source.layer(1)
    assert isinstance(layer.down, FORMATS[kind])
    np.testing.assert_array_equal(layer.down.dense(), stored["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(source.embedding().dense(), stored["token_embd.weight"])
    gate_up = np.concatenate([stored["blk.1.ffn_gate.weight"], stored["blk.1.ffn_up.weight"]])
    np.testing.assert_array_equal(layer.gate_up.dense(), gate_up)
    value = layer.qkv.dense()[(tiny.HEADS + tiny.KV_HEADS) * tiny.HEAD_DIM :]
    np.testing.assert_array_equal(value, stored["blk.1.attn_v.weight"])


def test_fused_matrices_of_different_formats_keep_their_values(tmp_path: Path) -> None:
    source = GgufFile(tiny.write_tiny(tmp_path / "tiny.gguf", Kind.Q4_1, value_kind=Kind.Q8_0))
    alone = GgufFile(tiny.write_tiny(tmp_path / "alone.gguf", Kind.Q4_1))
    qk = (tiny.HEADS + tiny.KV_HEADS) * tiny.HEAD_DIM
    assert isinstance(source.layer(0).qkv, Dense)
    np.testing.assert_array_equal(source.layer(0).qkv.dense()[:qk], alone.layer(0).qkv.dense()[:qk])


@given(heads=st.integers(1, 4), half=st.integers(1, 8), position=st.integers(0, 100))
def test_reordered_rows_turn_interleaved_rotary_into_half_split(heads: int, half: int, position: int) -> None:
    size = 2 * half
    rows = half_split_rows(heads, size)
    assert sorted(rows) == list(range(heads * size))
    value = np.random.default_rng(position).normal(size=heads * size)
    angle = position * 10.0 ** -np.arange(half)
    even, odd = value.reshape(heads, half, 2).transpose(2, 0, 1)
    interleaved = np.stack([even * np.cos(angle) - odd * np.sin(angle), odd * np.cos(angle) + even * np.sin(angle)], -1)
    low, high = np.split(value[rows].reshape(heads, size), 2, axis=1)
    split = np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], 1)
    np.testing.assert_allclose(interleaved.reshape(-1)[rows], split.reshape(-1))


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_rounding_to_8_bits_errs_by_half_a_step(seed: int, scale: float) -> None:
    values = (np.random.default_rng(seed).normal(size=(3, 64)) * scale).astype(np.float32)
    rounded = to_symmetric8(values)
    error = np.abs(rounded.dense() - values).reshape(3, 2, 32).max(axis=-1)
    assert np.all(error <= rounded.scales * 0.57)  # half a step, and the scale itself is rounded to float16


def test_the_catalogue_describes_the_real_file(model: InstalledModel) -> None:
    source = GgufFile(model.source)
    assert source.geometry == manifest(model.id).geometry
    assert isinstance(source.layer(29).qkv, Affine4)
    assert isinstance(source.head(), Symmetric8)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"architecture": "qwen2"}, "qwen2"),
        ({"extra_tensor": "blk.0.attn_q.bias"}, r"attn_q\.bias"),
        ({"metadata": {"llama.expert_count": 8}}, "expert_count = 8"),
        ({"metadata": {"llama.rope.dimension_count": 16}}, "dimension_count = 16"),
        ({"metadata": {"llama.attention.head_count": 0}}, "head_count = 0 is not a size"),
        ({"metadata": {"llama.attention.head_count": 7}}, "has the shape"),
        ({"metadata": {"llama.block_count": 3}}, r"lacks the tensors blk\.2"),
        ({"metadata": {"llama.feed_forward_length": 7}}, "ffn_gate.* has the shape"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 99_999}}, "token 99999 as eos"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(broken: dict[str, object], complaint: str, tmp_path: Path) -> None:
    path = tiny.write_tiny(tmp_path / "tiny.gguf", Kind.F32, **broken)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=complaint):
        GgufFile(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGU" * 100)
    with pytest.raises(ModelError, match="not a readable GGUF"):
        GgufFile(tmp_path / "no.gguf")


@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, damaged: tuple[bytes, Path]) -> None:
    """Bytes of the metadata changed, or the end cut off: never anything but a model or a ModelError."""
    whole, path = damaged
    changed = bytearray(whole[: data.draw(st.sampled_from([len(whole), *range(0, len(whole), 997)]))])
    for at, byte in data.draw(st.dictionaries(st.integers(0, 12_000), st.integers(0, 255), max_size=3)).items():
        if at < len(changed):
            changed[at] = byte
    path.write_bytes(changed)
    try:
        source = GgufFile(path)
        tokenizer_json(source.tokenizer)
        source.layer(0)
        source.embedding()
    except ModelError:
        pass


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return tiny.write_tiny(folder / "whole.gguf", Kind.Q4_1).read_bytes(), folder / "damaged.gguf"
