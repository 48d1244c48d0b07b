"""Write an ONNX model whose weights stream to a side file, so that building needs little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
LLMOS = "llmos"
INLINE_BYTES = 1024  # smaller tensors live in the model file itself
ALIGNMENT = 4096  # of each tensor in the side file, so that the runtime can map it

Shape = Sequence[int | str]


class GraphBuilder:
    """Collects nodes in order; node outputs get fresh names, weights the names they are given.

    One of `save` or `close` ends it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path.with_suffix(".data").open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._names: set[str] = set()
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._fresh = 0

    def input(self, name: str, element: int, shape: Shape) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, name: str, element: int, shape: Shape) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, element, shape))

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """An initializer; written once, a second call with the same name refers to the first."""
        if name not in self._names:
            self._names.add(name)
            inline = values.nbytes < INLINE_BYTES
            tensor = numpy_helper.from_array(values, name) if inline else self._external(name, values)
            self._initializers.append(tensor)
        return name

    def node(
        self, operator: str, inputs: Sequence[str], *, domain: str = "", outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Append a node and return its first output, freshly named unless `outputs` names them."""
        names = list(outputs) or [self.name(operator)]
        self._nodes.append(
            helper.make_node(operator, inputs, names, name=self.name("node"), domain=domain, **attributes)
        )
        return names[0]

    def name(self, stem: str) -> str:
        self._fresh += 1
        return f"{stem}_{self._fresh}"

    def constant(self, values: Sequence[int] | int) -> str:
        """An int64 tensor, shared between all who ask for the same values."""
        label = "x".join(map(str, values)) if isinstance(values, Sequence) else f"scalar{values}"
        return self.weight(f"int64.{label}", np.array(values, np.int64))

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes appended inside go to the list that is given: a subgraph's, which sees this graph's values."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def save(self) -> None:
        self.close()
        graph = helper.make_graph(self._nodes, "llmos", self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(LLMOS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmosd")
        onnx.save(model, self._path)

    def close(self) -> None:
        self._data.close()

    def _external(self, name: str, values: NDArray[Any]) -> onnx.TensorProto:
        padding = -self._data.tell() % ALIGNMENT
        self._data.write(bytes(padding))
        offset = self._data.tell()
        self._data.write(np.ascontiguousarray(values).data)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            dims=values.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = (("location", Path(self._data.name).name), ("offset", offset), ("length", values.nbytes))
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        return tensor
