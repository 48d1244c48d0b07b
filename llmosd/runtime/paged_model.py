"""One model ready to run: an ONNX Runtime session, and the page pool that its graph reads and writes.

Pages lie outside the graph in numpy arrays that are bound once: keys [P, KH, D, S] and values [P, KH, S, D] for each
layer. A step rebinds only the small integer inputs that changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from llmosd.errors import ModelError, StepError
from llmosd.runtime import native
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import LLMOS
from llmosd.runtime.installed import InstalledModel

Backend = Literal["native", "gather"]
KvFormat = Literal["float16", "float32"]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
F32 = NDArray[np.float32]

_RUN_ERRORS = (
    ort_errors.Fail,
    ort_errors.RuntimeException,
    ort_errors.InvalidArgument,
    ort_errors.EPFail,
    RuntimeError,
)
SPIN_US = 20
"""How long a thread looks for its next piece of work before it sleeps: longer than the gaps between operators, and so
short that a neighbour who wants the core loses little (docs/process-model.md)."""

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def variant_name(backend: Backend, strict: bool) -> str:
    """Directory of the graph that serves a backend: `native`, `native-float32`, `gather` or `gather-float32`."""
    return f"{backend}-float32" if strict else backend


def choose_backend(wanted: str, strict: bool) -> tuple[Backend, str]:
    """(backend, why) for a configured `auto`, `native` or `gather`. Raises ModelError for what cannot be had."""
    status = native.status()
    if wanted == "gather" and strict:
        raise ModelError("strict mode needs the native backend: only its operators fix the order of every sum")
    if wanted == "gather":
        return "gather", "asked for"
    if status.available:
        return "native", f"operators from {status.compiler} for {status.isa}"
    if wanted == "native" or strict:
        raise ModelError(f"the native backend is not available: {status.why}")
    return "gather", f"the native backend is not available: {status.why}"


def pages_that_fit(geometry: Geometry, page_tokens: int, memory_bytes: int, kv_format: KvFormat = "float16") -> int:
    """Pages whose K and V over all layers fit in `memory_bytes`."""
    return memory_bytes // geometry.page_bytes(page_tokens, np.dtype(kv_format).itemsize)


class PagedModel:
    """Not thread-safe: one owner runs steps one after the other. Raises ModelError where it cannot be loaded."""

    def __init__(
        self,
        graph: Path,
        geometry: Geometry,
        *,
        backend: Backend,
        strict: bool,
        pages: int,
        page_tokens: int,
        threads: int,
        spin: bool,
        kv_format: KvFormat,
    ) -> None:
        self.geometry = geometry
        self.backend: Backend = backend
        self.weight_format = "float32" if strict else "file"
        self.kv_format: KvFormat = kv_format
        self.pages, self.page_tokens, self.threads = pages, page_tokens, threads
        self._session = _session(graph, backend, kv_format, threads, spin)
        self._binding = self._session.io_binding()
        self._bound: dict[str, NDArray[Any]] = {}
        self.keys, self.values = self._bind_pool()  # by layer; in place, as the graph sees them
        self._memory: F32 = np.empty((0, geometry.vocab), np.float32)  # of logits
        self._logits: F32 | None = None

    @classmethod
    def load(
        cls,
        model: InstalledModel,
        *,
        backend: Backend,
        strict: bool,
        pages: int,
        page_tokens: int,
        threads: int,
        spin: bool,
        kv_format: KvFormat | None = None,
    ) -> PagedModel:
        """Load the graph of a variant that has been built (`importer.ensure_graph`).

        `strict` means float32 weights and K/V and, on the native backend, sums whose order depends on nothing but
        the row itself. `kv_format` None is float16, or float32 when strict.
        """
        graph = model.graph(variant_name(backend, strict))
        if not graph.is_file():
            raise ModelError(f"model {model.id} has no {graph.parent.name} graph: run `llmosd models pull {model.id}`")
        return cls(
            graph,
            model.geometry,
            backend=backend,
            strict=strict,
            pages=pages,
            page_tokens=page_tokens,
            threads=threads,
            spin=spin,
            kv_format=kv_format or ("float32" if strict else "float16"),
        )

    @property
    def bytes_per_page(self) -> int:
        return self.geometry.page_bytes(self.page_tokens, np.dtype(self.kv_format).itemsize)

    def run(
        self, token_ids: Int64, cumulative_lengths: Int32, past_lengths: Int32, page_table: Int32, logit_rows: Int64
    ) -> F32:
        """One step over packed tokens; logits [R, vocab] of the packed rows `logit_rows`.

        Sequence b owns tokens cumulative_lengths[b] … cumulative_lengths[b+1]−1 and puts them at positions from
        past_lengths[b] on, in the pages that row b of `page_table` names. Its K and V are in the pool afterwards.
        The result is a view into a buffer that the next run overwrites. Raises StepError with the operator's words.
        """
        if self.backend == "gather":
            self._check_pages(cumulative_lengths, past_lengths, page_table)
        self._bind("token_ids", token_ids)
        self._bind("cumulative_lengths", cumulative_lengths)
        self._bind("past_lengths", past_lengths)
        self._bind("page_table", page_table)
        self._bind("logit_rows", logit_rows)
        logits = self._bind_logits(len(logit_rows))
        rows = self._bind_rows(len(token_ids)) if self.backend == "gather" else []
        try:
            self._session.run_with_iobinding(self._binding)
        except _RUN_ERRORS as error:
            raise StepError(f"the step failed: {error}") from error
        if rows:
            self._store_rows(rows, cumulative_lengths, past_lengths, page_table)
        return logits

    def copy_page(self, source: int, target: int) -> None:
        """K and V of all layers of one page to another."""
        for pool in (*self.keys, *self.values):
            pool[target] = pool[source]

    def close(self) -> None:
        """Give back the session and the pool; the model cannot run afterwards."""
        self._bound.clear()
        self.keys.clear()
        self.values.clear()
        del self._binding, self._session

    # ------------------------------------------------------------ binding

    def _bind_pool(self) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        g, kind = self.geometry, np.dtype(self.kv_format)
        keys = [np.zeros((self.pages, g.kv_heads, g.head_dim, self.page_tokens), kind) for _ in range(g.layers)]
        values = [np.zeros((self.pages, g.kv_heads, self.page_tokens, g.head_dim), kind) for _ in range(g.layers)]
        for layer in range(g.layers):
            self._bind(f"key_cache.{layer}", keys[layer])
            self._bind(f"value_cache.{layer}", values[layer])
        return keys, values

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        """Bind an array's own memory as an input; an array that is bound already is left alone."""
        if self._bound.get(name) is not array:
            array = np.ascontiguousarray(array)
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            self._bound[name] = array

    def _bind_output(self, name: str, array: NDArray[Any]) -> None:
        self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _bind_logits(self, rows: int) -> F32:
        """The buffer for logits of `rows` rows; one that is bound already stays bound."""
        if rows > len(self._memory):
            self._memory = np.empty((rows, self.geometry.vocab), np.float32)
        if self._logits is None or rows != len(self._logits):
            self._logits = self._memory[:rows]
            self._bind_output("logits", self._logits)
        return self._logits

    # ------------------------------------------------------------ what the gather graph leaves to the host

    def _check_pages(self, cumulative: Int32, past: Int32, table: Int32) -> None:
        ends = past + np.diff(cumulative)
        used = -(-ends // self.page_tokens)
        if used.max(initial=0) > table.shape[1]:
            raise StepError(
                f"a sequence of {ends.max()} tokens needs {used.max()} pages of {table.shape[1]} in its row"
            )
        named = table[np.arange(table.shape[1]) < used[:, None]]
        if named.size and (named.min() < 0 or named.max() >= self.pages):
            raise StepError(f"the page table names a page outside 0 … {self.pages - 1}")

    def _bind_rows(self, tokens: int) -> list[tuple[F32, F32]]:
        shape = (tokens, self.geometry.kv_heads, self.geometry.head_dim)
        rows = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in range(self.geometry.layers)]
        for layer, (keys, values) in enumerate(rows):
            self._bind_output(f"key_rows.{layer}", keys)
            self._bind_output(f"value_rows.{layer}", values)
        return rows

    def _store_rows(self, rows: list[tuple[F32, F32]], cumulative: Int32, past: Int32, table: Int32) -> None:
        sequence = np.repeat(np.arange(len(past)), np.diff(cumulative))
        position = np.arange(len(sequence)) - cumulative[sequence] + past[sequence]
        page, slot = table[sequence, position // self.page_tokens], position % self.page_tokens
        for layer, (keys, values) in enumerate(rows):
            self.keys[layer][page, :, :, slot] = keys
            self.values[layer][page, :, slot, :] = values


def _session(graph: Path, backend: Backend, kv_format: KvFormat, threads: int, spin: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # with each run: an idle engine costs nothing
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(graph.parent))
    if backend == "native":
        native.register(options)
    try:
        model = _specialised(graph, kv_format, threads)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (OSError, *_RUN_ERRORS) as error:
        raise ModelError(f"{graph} cannot be loaded: {error}") from error


def _specialised(graph: Path, kv_format: KvFormat, threads: int) -> bytes:
    """The stored graph with this session's thread count and K/V type written in."""
    model = onnx.load(graph, load_external_data=False)
    element = TensorProto.FLOAT if kv_format == "float32" else TensorProto.FLOAT16
    for value in model.graph.input:
        if value.name.startswith(("key_cache.", "value_cache.")):
            value.type.tensor_type.elem_type = element
    for node in model.graph.node:
        if node.domain == LLMOS:
            for attribute in node.attribute:
                if attribute.name == "threads":
                    attribute.i = threads
    return bytes(model.SerializeToString())
