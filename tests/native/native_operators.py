"""One-node sessions over the native operators, and a paged pool to run attention on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import onnxruntime
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from llmosd.runtime import native
from llmosd.types import KvFormat

Array = NDArray[Any]
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}


@functools.lru_cache(maxsize=256)
def session(
    op: str, types: tuple[int | None, ...], threads: int, attributes: tuple[tuple[str, Any], ...]
) -> onnxruntime.InferenceSession:
    names = [f"x{i}" if kind else "" for i, kind in enumerate(types)]
    node = helper.make_node(op, names, ["y"], domain="llmos", threads=threads, **dict(attributes))
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, types, strict=True) if kind]
    kind = TensorProto.INT64 if op == "Draw" else TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "test", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("llmos", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(max(threads, 1), 8)
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    native.register(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(op: str, inputs: Sequence[Array | None], *, threads: int = 1, **attributes: Any) -> Array:
    """Run one operator; arrays are bound without a copy, so caches among the inputs are written in place."""
    types = tuple(None if array is None else TYPES[array.dtype] for array in inputs)
    one = session(op, types, threads, tuple(sorted(attributes.items())))
    feeds = {
        f"x{i}": onnxruntime.OrtValue.ortvalue_from_numpy(array) for i, array in enumerate(inputs) if array is not None
    }
    result: Array = one.run_with_ort_values(["y"], feeds)[0].numpy()
    return result


@dataclass(frozen=True)
class Geometry:
    heads: int
    kv_heads: int
    size: int
    page_tokens: int
    kv: KvFormat = "float32"
    context: int = 1024

    @property
    def scale(self) -> float:
        return float(np.float32(self.size**-0.5))

    @functools.cached_property
    def rotation(self) -> tuple[Array, Array]:
        angles = np.outer(np.arange(self.context), 10000.0 ** (-np.arange(0, self.size, 2) / self.size))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rotate(self, x: Array, positions: Array) -> Array:
        """Rotate [tokens, heads, size] in float32, as the operator stores keys."""
        half = self.size // 2
        c, s = (table[positions][:, None, :] for table in self.rotation)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


@dataclass
class Pool:
    """A page pool full of NaN (int8: scales are NaN), and sequences whose pages are handed out in shuffled order."""

    geometry: Geometry
    pages: int
    seed: int = 0
    tables: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        g = self.geometry
        dtype, size = np.dtype(g.kv), g.size + 4 * (g.kv == "int8")
        garbage = -1 if g.kv == "int8" else np.nan
        self.rng = np.random.default_rng(self.seed)
        self.keys = np.full((self.pages, g.kv_heads, size, g.page_tokens), garbage, dtype)
        self.values = np.full((self.pages, g.kv_heads, g.page_tokens, size), garbage, dtype)
        self.free = [int(page) for page in self.rng.permutation(self.pages)]

    def grow(self, table: list[int], length: int) -> None:
        while len(table) * self.geometry.page_tokens < length:
            table.append(self.free.pop())

    def contents(self) -> tuple[Array, Array]:
        """What the whole pool stands for: keys and values [pages, page tokens, kv_heads, size] in float64."""
        g = self.geometry
        keys, values = self.keys.astype(np.float64), self.values.astype(np.float64)
        if g.kv == "int8":
            codes, scales = self._codes_and_scales(self.keys)
            keys = codes.reshape(*codes.shape[:2], g.size, g.page_tokens) * scales[:, :, None]
            codes, scales = self._codes_and_scales(self.values)
            values = codes.reshape(*codes.shape[:2], g.page_tokens, g.size) * scales[..., None]
        return keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)

    def _codes_and_scales(self, pool: Array) -> tuple[Array, Array]:
        pages = pool.reshape(self.pages, self.geometry.kv_heads, -1)
        codes, scales = np.split(pages, [self.geometry.size * self.geometry.page_tokens], axis=2)
        return codes, np.ascontiguousarray(scales).view(np.float32).astype(np.float64)

    def stored(self, table: list[int], length: int) -> tuple[Array, Array]:
        """Keys and values [length, kv_heads, size] of one sequence, as the pool stands for them."""
        g = self.geometry
        keys, values = (part[table].reshape(-1, g.kv_heads, g.size)[:length] for part in self.contents())
        return keys, values

    def step(
        self, parts: Sequence[tuple[Array, int, list[int]]], *, threads: int = 1, exact: int = 1, **changes: Array
    ) -> Array:
        """One run over (qkv rows, past length, page table) of each sequence; `changes` replaces inputs by name."""
        g = self.geometry
        columns = max([1, *(len(table) for _, _, table in parts)]) + 1
        inputs: dict[str, Array] = {
            "qkv": np.concatenate([rows for rows, _, _ in parts]),
            "keys": self.keys,
            "values": self.values,
            "cumulative": np.cumsum([0, *(len(rows) for rows, _, _ in parts)]).astype(np.int32),
            "past": np.array([past for _, past, _ in parts], np.int32),
            "table": np.full((len(parts), columns), -(2**31), np.int32),
            "cos": g.rotation[0],
            "sin": g.rotation[1],
        }
        for row, (_, _, table) in zip(inputs["table"], parts, strict=True):
            row[: len(table)] = table
        inputs |= changes
        attributes = {"num_heads": g.heads, "kv_num_heads": g.kv_heads, "scale": g.scale, "exact": exact}
        return run("PagedAttention", list(inputs.values()), threads=threads, **attributes)

    def feed(
        self, sequences: Sequence[tuple[Array, list[int]]], *, threads: int = 1, exact: int = 1
    ) -> list[tuple[Array, list[int]]]:
        """Runs over (qkv rows, borders of the chunks) of sequences side by side; output and page table of each."""
        tables: list[list[int]] = [[] for _ in sequences]
        outputs: list[list[Array]] = [[] for _ in sequences]
        for i in range(max(len(borders) for _, borders in sequences) - 1):
            live = [n for n, (_, borders) in enumerate(sequences) if i + 1 < len(borders)]
            for n in live:
                self.grow(tables[n], sequences[n][1][i + 1])
            spans = [(sequences[n][0], sequences[n][1][i], sequences[n][1][i + 1], tables[n]) for n in live]
            parts = [(qkv[begin:end], begin, table) for qkv, begin, end, table in spans]
            ends = np.cumsum([end - begin for _, begin, end, _ in spans])
            for n, part in zip(live, np.split(self.step(parts, threads=threads, exact=exact), ends[:-1]), strict=True):
                outputs[n].append(part)
        return [(np.concatenate(parts), table) for parts, table in zip(outputs, tables, strict=True)]


def keys_and_values(g: Geometry, qkv: Array) -> tuple[Array, Array]:
    """What a pool without rounding would hold of one whole sequence: [tokens, kv_heads, size] in float64."""
    parts = qkv.astype(np.float64).reshape(len(qkv), -1, g.size)
    return g.rotate(parts[:, g.heads : -g.kv_heads], np.arange(len(qkv))), parts[:, -g.kv_heads :]


def attention_terms(g: Geometry, qkv: Array, stored: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
    """Of causal attention in float64 of one whole sequence [tokens, (heads + 2 kv_heads) · size] over the stored K, V:
    scaled queries [tokens, heads, size], keys, values (alike) and weights [heads, tokens, tokens]."""
    tokens = len(qkv)
    positions = np.arange(tokens)
    q = g.rotate(qkv.reshape(tokens, -1, g.size)[:, : g.heads].astype(np.float64), positions) * g.scale
    k, v = (np.repeat(x, g.heads // g.kv_heads, axis=1) for x in stored)
    scores = np.einsum("qhd,khd->hqk", q, k)
    scores[:, positions[:, None] < positions[None, :]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return q, k, v, weights


def attention_reference(g: Geometry, qkv: Array, stored: tuple[Array, Array]) -> Array:
    *_, v, weights = attention_terms(g, qkv, stored)
    result: Array = np.einsum("hqk,khd->qhd", weights, v).reshape(len(qkv), -1)
    return result


groups = st.tuples(st.integers(1, 3), st.integers(1, 5)) | st.tuples(st.just(1), st.sampled_from([7, 8, 16, 48]))
geometries = st.builds(
    lambda heads, size, page, kv: Geometry(heads[0] * heads[1], heads[0], size, page, kv),
    groups,
    st.sampled_from([64, 128, 256]) | st.sampled_from(range(32, 257, 16)),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from(get_args(KvFormat)),
)
lengths = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 255, 256, 257, 300]))
cuts = st.lists(st.floats(0, 1), max_size=3)


def tokens(g: Geometry, count: int, rng: np.random.Generator) -> Array:
    return rng.standard_normal((count, (g.heads + 2 * g.kv_heads) * g.size), np.float32)


def chunks(total: int, fractions: list[float]) -> list[int]:
    """Borders of the chunks that a sequence is fed in."""
    return sorted({0, total, *(int(total * f) for f in fractions)})
