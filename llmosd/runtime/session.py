"""An ONNX Runtime session with what it reads and writes bound: a step rebinds only what changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from llmosd.errors import ModelError, StepError
from llmosd.runtime import native
from llmosd.runtime.backend import Backend
from llmosd.runtime.device import providers
from llmosd.runtime.graph.builder import LLMOS
from llmosd.runtime.page_pool import width
from llmosd.types import KvFormat, Nanoseconds

F32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bindable: TypeAlias = NDArray[Any] | ort.OrtValue

SPIN_US = 20
"""How long a thread looks for its next piece of work before it sleeps: longer than the gaps between operators, and so
short that a neighbour who wants the core loses little (docs/process-model.md)."""

MOST_VALUES = 1024
"""Arrays that a session remembers."""

_RUN_ERRORS = (
    ort_errors.Fail,
    ort_errors.RuntimeException,
    ort_errors.InvalidArgument,
    ort_errors.EPFail,
    ort_errors.NotImplemented,
    RuntimeError,
)
KV_ELEMENTS: dict[KvFormat, int] = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
}
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class _Outputs:
    """Of so many rows."""

    def __init__(self, logits: F32) -> None:
        self.logits = logits
        self.logits_value = ort.OrtValue.ortvalue_from_numpy(logits)
        self.tokens: Int64 = np.empty(len(logits), np.int64)
        self.tokens_value = ort.OrtValue.ortvalue_from_numpy(self.tokens)


class BoundSession:
    """Memory of the session's own device is used in place and must not move; the session keeps it alive.

    With `copies` the device is not the host's: arrays are copied there as they are bound, so that what is in them
    counts at that moment.
    """

    def __init__(self, session: ort.InferenceSession, vocab: int, *, copies: bool, draws: bool) -> None:
        """`draws`: the graph draws tokens as well."""
        self.copies = copies
        self._draws = draws
        self._draw_ended = native.draw_ended() if draws else None
        self.run_ns: Nanoseconds = 0  # of the last run, to the end of its operators where they draw
        self.inference = session
        self._binding = session.io_binding()
        self._bound: dict[str, Bindable] = {}
        self._values: dict[int, tuple[NDArray[Any], ort.OrtValue]] = {}  # by an array's id, which is its own while here
        self._memory: F32 = np.empty((0, vocab), np.float32)  # of logits
        self._outputs: dict[int, _Outputs] = {}  # by rows
        self._rows = -1  # of the outputs that are bound
        self.tokens: Int64 = np.empty(0, np.int64)  # of the bound rows, where the graph draws

    def bind(self, name: str, value: Bindable) -> None:
        """Bind an input; an array that is bound already and used in place is left alone."""
        if self.copies or self._bound.get(name) is not value:
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value)
            self._binding.bind_ortvalue_input(name, self._ort_value(value))
            self._bound[name] = value

    def bind_output(self, name: str, array: NDArray[Any]) -> None:
        self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def bind_logits(self, rows: int) -> F32:
        """The buffer for logits of `rows` rows; one that is bound already stays bound."""
        if rows > len(self._memory):
            self._memory = np.empty((rows, self._memory.shape[1]), np.float32)
            self._outputs.clear()
            self._rows = -1
        outputs = self._outputs.get(rows)
        if outputs is None:
            outputs = self._outputs[rows] = _Outputs(self._memory[:rows])
        if rows != self._rows:
            self._binding.bind_ortvalue_output("logits", outputs.logits_value)
            if self._draws:
                self.tokens = outputs.tokens
                self._binding.bind_ortvalue_output("tokens", outputs.tokens_value)
            self._rows = rows
        return outputs.logits

    def _ort_value(self, value: Bindable) -> ort.OrtValue:
        """An array's that is used in place is made once: that takes several times as long as to bind it."""
        if not isinstance(value, np.ndarray):
            return value
        if self.copies:
            return ort.OrtValue.ortvalue_from_numpy(value)
        kept = self._values.get(id(value))
        if kept is None:
            if len(self._values) >= MOST_VALUES:
                self._values.clear()
            kept = value, ort.OrtValue.ortvalue_from_numpy(value)
            self._values[id(value)] = kept
        return kept[1]

    def run(self) -> None:
        """Raises StepError with the words of the operator that failed."""
        began = time.perf_counter_ns()
        try:
            if self.copies:
                self._binding.synchronize_inputs()
            self.inference.run_with_iobinding(self._binding)
        except _RUN_ERRORS as error:
            raise StepError(f"the step failed: {error}") from error
        ended = time.perf_counter_ns()
        if self._draw_ended is not None and began < self._draw_ended.value < ended:
            ended = self._draw_ended.value  # what came then is the way back, through the interpreter's lock
        self.run_ns = ended - began

    def close(self) -> None:
        """Let go of the session and of all that was bound."""
        self._bound.clear()
        self._values.clear()
        self._outputs.clear()
        del self._binding, self.inference


def open_session(
    graph: Path, backend: Backend, kv_format: KvFormat, threads: int, spin: bool, strict: bool
) -> ort.InferenceSession:
    """`strict`: a row's results do not depend on the rows beside it. Raises ModelError where it cannot be loaded."""
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
        model = _specialised(graph, kv_format, threads, strict)
        if backend == "native":
            _add_draw(model, threads)
        return ort.InferenceSession(
            model.SerializeToString(), options, providers("cuda" if backend == "cuda" else "cpu")
        )
    except (OSError, *_RUN_ERRORS) as error:
        raise ModelError(f"{graph} cannot be loaded: {error}") from error


def _specialised(graph: Path, kv_format: KvFormat, threads: int, strict: bool) -> onnx.ModelProto:
    """The stored graph with this session's thread count, K/V type and exactness written in."""
    model = onnx.load(graph, load_external_data=False)
    for value in model.graph.input:
        if value.name.startswith(("key_cache.", "value_cache.")):
            kind = value.type.tensor_type
            kind.elem_type = KV_ELEMENTS[kv_format]
            size = kind.shape.dim[2 if value.name.startswith("key") else 3]
            size.dim_value = width(size.dim_value, kv_format)
    for node in model.graph.node:
        if node.domain == LLMOS:
            _set(node, threads=threads)
            if node.op_type in ("QLinear", "PagedAttention"):
                _set(node, exact=int(strict))
    return model


def _set(node: onnx.NodeProto, **integers: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in integers]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in integers.items())


def _add_draw(model: onnx.ModelProto, threads: int) -> None:
    """Let the graph draw a token from each row of logits: input `streams` (addresses, or 0), output `tokens`."""
    graph, rows = model.graph, ["R"]
    graph.node.append(helper.make_node("Draw", ["logits", "streams"], ["tokens"], domain=LLMOS, threads=threads))
    graph.input.append(helper.make_tensor_value_info("streams", TensorProto.INT64, rows))
    graph.output.append(helper.make_tensor_value_info("tokens", TensorProto.INT64, rows))
