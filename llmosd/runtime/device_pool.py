"""The K/V pages of all sequences in a GPU's memory, as ONNX Runtime's PagedAttention wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from llmosd.runtime.device import providers
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph.builder import IR_VERSION, OPSET

Int32 = NDArray[np.int32]


class DevicePool:
    """Float16 pages [P, S, KH, D] for keys and for values of each layer, on the first device of a kind.

    Zero at first: the operator's tiles reach beyond a sequence's end, and what lies there may be anything but NaN.
    """

    def __init__(self, geometry: Geometry, *, pages: int, page_tokens: int, device: str) -> None:
        g = geometry
        self.pages, self.page_tokens = pages, page_tokens
        zeros = np.zeros((pages, page_tokens, g.kv_heads, g.head_dim), np.float16)
        self.keys = [_filled(zeros, device) for _ in range(g.layers)]
        self.values = [_filled(zeros, device) for _ in range(g.layers)]
        self._copier = _Copier(2 * g.layers, zeros[0].size, device)

    def inputs(self) -> Iterator[tuple[str, ort.OrtValue]]:
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            yield f"key_cache.{layer}", keys
            yield f"value_cache.{layer}", values

    def copy_page(self, source: int, target: int) -> None:
        self._copier.copy([value.data_ptr() for value in (*self.keys, *self.values)], source, target)

    def resize(self, pages: int) -> None:
        """The allocator of the device gives nothing back: the memory stays until the model is unloaded."""

    def clear(self) -> None:
        self.keys.clear()
        self.values.clear()
        del self._copier


def attention_metadata(cumulative_lengths: Int32, past_lengths: Int32) -> Int32:
    """What the operator need not ask the device for: most new tokens of a sequence, and its most tokens, twice.

    They are upper and lower bounds to it, by which it chooses and sizes its kernels.
    """
    lengths = np.diff(cumulative_lengths)
    longest = (past_lengths + lengths).max()
    return np.array([lengths.max(), longest, longest], np.int32)


class _Copier:
    """Copies between addresses on a device by ONNX Runtime's own means: a graph of nothing but identities."""

    def __init__(self, arrays: int, page_values: int, device: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(_identities(arrays, page_values), options, providers(device))
        self._binding = self._session.io_binding()
        self._page_values, self._device = page_values, device

    def copy(self, arrays: Sequence[int], source: int, target: int) -> None:
        """One page in each of the arrays that start at these addresses; returns when it is done."""
        page_bytes = self._page_values * np.dtype(np.float16).itemsize
        for index, start in enumerate(arrays):
            tensor = (self._device, 0, np.float16, (self._page_values,))
            self._binding.bind_input(f"from.{index}", *tensor, start + source * page_bytes)
            self._binding.bind_output(f"to.{index}", *tensor, start + target * page_bytes)
        self._session.run_with_iobinding(self._binding)


def _filled(values: NDArray[np.float16], device: str) -> ort.OrtValue:
    array = ort.OrtValue.ortvalue_from_shape_and_type(values.shape, values.dtype.type, device, 0)
    array.update_inplace(values)
    return array


def _identities(count: int, values: int) -> bytes:
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{end}.{n}", TensorProto.FLOAT16, [values]) for n in range(count)]
        for end in ("from", "to")
    )
    nodes = [helper.make_node("Identity", [f"from.{n}"], [f"to.{n}"]) for n in range(count)]
    graph = helper.make_graph(nodes, "copy", inputs, outputs)
    opset = helper.make_opsetid("", OPSET)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString())
