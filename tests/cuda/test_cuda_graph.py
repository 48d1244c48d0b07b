"""The graph for CUDA where there is no GPU: valid to ONNX and to ONNX Runtime, and right by the operators' definition.

Nothing here runs a GPU's kernels: `test_cuda_engine.py` does, where there is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gguf import GGMLQuantizationType as Kind
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph, NotImplemented

from llmosd.errors import StepError
from llmosd.runtime import paged_model, session
from llmosd.runtime.catalogue import manifest
from llmosd.runtime.device_pool import DevicePool
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.graph.cuda import CudaOperators, best_page_tokens
from llmosd.runtime.graph.llama import build_llama
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.reference import Reference
from llmosd.runtime.verify import TOLERANCE, golden_gaps
from tests.cuda.evaluated import EvaluatedModel
from tests.runtime import tiny
from tests.runtime.stepping import Stream, step

PAGES, PAGE_TOKENS = 12, 16


@pytest.fixture(scope="module", params=[Kind.Q4_1, Kind.Q8_0, Kind.F16], ids=lambda kind: kind.name)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GgufFile]:
    folder = tmp_path_factory.mktemp("tiny")
    source = GgufFile(tiny.write_tiny(folder / "tiny.gguf", request.param, tied=request.param is not Kind.Q8_0))
    build_llama(source, CudaOperators(), folder / "model.onnx", lambda layers: None)
    return folder / "model.onnx", source


@pytest.fixture(scope="module")
def real(model: InstalledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = tmp_path_factory.mktemp("real") / "model.onnx"
    build_llama(GgufFile(model.source), CudaOperators(), graph, lambda layers: None)
    return graph


def open_on_cpu(model: onnx.ModelProto, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def with_stand_in(model: onnx.ModelProto, geometry: Geometry) -> onnx.ModelProto:
    """The graph with queries in the place of what attention makes of them: the CPU has kernels for all that is left."""
    bounds = {"cut.start": 0, "cut.stop": geometry.heads * geometry.head_dim, "cut.axis": 1}
    for name, value in bounds.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    for node in model.graph.node:
        if node.op_type == "PagedAttention":
            node.CopyFrom(helper.make_node("Slice", [node.input[0], *bounds], node.output, name=node.name))
    return model


def check(graph: Path, geometry: Geometry) -> None:
    """Nothing is amiss but that the CPU has no kernel for the one operator: its schema has been satisfied by then."""
    onnx.checker.check_model(graph, full_check=True)
    model = onnx.load(graph, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    with pytest.raises(NotImplemented, match=r"implementation for PagedAttention\(1\)"):
        open_on_cpu(model, graph.parent)
    (logits,) = open_on_cpu(with_stand_in(model, geometry), graph.parent).get_outputs()
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["R", geometry.vocab])


def test_a_small_graph_is_valid(small: tuple[Path, GgufFile]) -> None:
    check(small[0], small[1].geometry)


def test_the_real_models_graph_is_valid_and_right(real: Path, model: InstalledModel) -> None:
    check(real, model.geometry)
    evaluated = EvaluatedModel(real, model.geometry, pages=1, page_tokens=best_page_tokens(model.geometry))
    assert golden_gaps(evaluated, manifest(model.id).golden).max() < TOLERANCE["file"] / 10


def test_a_wrong_type_is_found_without_a_kernel(small: tuple[Path, GgufFile]) -> None:
    """What `check` rests on: the schema is looked at before the kernel is looked for."""
    model = onnx.load(small[0], load_external_data=False)
    metadata = next(value for value in model.graph.input if value.name == "attention_metadata")
    metadata.type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(InvalidGraph, match="attention_metadata"):
        open_on_cpu(model, small[0].parent)


def test_an_unknown_attribute_is_found_without_a_kernel(small: tuple[Path, GgufFile]) -> None:
    model = onnx.load(small[0], load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "PagedAttention")
    node.attribute.append(helper.make_attribute("head_size", 32))
    with pytest.raises(InvalidGraph, match="head_size"):
        open_on_cpu(model, small[0].parent)


def test_logits_are_those_of_the_reference(small: tuple[Path, GgufFile]) -> None:
    """In chunks, in company and in shuffled pages; float16 rounds where the GPU would."""
    model = EvaluatedModel(small[0], small[1].geometry, pages=PAGES, page_tokens=PAGE_TOKENS)
    rng = np.random.default_rng(1)
    first = Stream(rng.integers(0, len(tiny.TOKENS), 70).tolist(), [5, 2, 9, 0, 7])
    second = Stream(rng.integers(0, len(tiny.TOKENS), 33).tolist(), [1, 11, 4])
    seen: list[list[np.ndarray]] = [[], []]
    seen[0] += step(model, [(first, 30)])
    for sizes in ((1, 16), (38, 1), (1, 16)):
        for rows, part in zip(seen, step(model, list(zip((first, second), sizes, strict=True))), strict=True):
            rows.append(part)
    reference = Reference(small[1])
    for stream, rows in zip((first, second), seen, strict=True):
        expected = reference.logits(stream.tokens)
        assert np.sqrt(np.mean((np.concatenate(rows) - expected) ** 2)) < 0.01 * expected.std()


@pytest.fixture
def plain(small: tuple[Path, GgufFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PagedModel:
    """A model as for CUDA, but that its device is the host, and with the stand-in for attention."""
    graph, source = small
    tmp_path.joinpath("model.data").hardlink_to(graph.with_name("model.data"))
    model = with_stand_in(onnx.load(graph, load_external_data=False), source.geometry)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(session, "providers", lambda device: ["CPUExecutionProvider"])
    monkeypatch.setattr(
        paged_model, "DevicePool", lambda *args, device, **sizes: DevicePool(*args, **sizes, device="cpu")
    )
    return PagedModel(
        tmp_path / "model.onnx",
        source.geometry,
        backend="cuda",
        weights="file",
        pages=PAGES,
        page_tokens=PAGE_TOKENS,
        threads=1,
        spin=False,
        kv_format="float16",
    )


def test_a_model_feeds_its_graph_all_that_it_asks_for(plain: PagedModel) -> None:
    ids, ends, past = np.array([5, 6, 7], np.int64), np.array([0, 2, 3], np.int32), np.array([20, 0], np.int32)
    table, rows = np.array([[1, 2], [3, -1]], np.int32), np.array([2, 1], np.int64)
    first = plain.run(ids, ends, past, table, rows).copy()
    assert first.shape == (2, len(tiny.TOKENS)) and np.isfinite(first).all()
    ids[2] = 8  # a step of the same sizes comes in the same arrays
    second = plain.run(ids, ends, past, table, rows)
    assert (first[0] != second[0]).any() and (first[1] == second[1]).all()
    plain.copy_page(1, 2)
    for bad in ([[1, -1], [3, -1]], [[1, PAGES], [3, -1]], [[1], [3]]):
        with pytest.raises(StepError):
            plain.run(ids, ends, past, np.array(bad, np.int32), rows)
    plain.close()
