"""Which operators a model runs on, and where the graph that uses them lies."""

from __future__ import annotations

from typing import Literal

from llmosd.errors import ModelError
from llmosd.runtime import native
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.graph import cuda
from llmosd.types import KvChoice, KvFormat, WeightFormat

Backend = Literal["native", "gather", "cuda"]
LARGEST_PAGE = 128  # tokens that a page of the native operators holds at most


def variant_name(backend: Backend, weights: WeightFormat) -> str:
    """Directory of the graph that serves a backend: its name, with `-float32` where weights are expanded."""
    return backend if weights == "file" else f"{backend}-{weights}"


def best_page_tokens(backend: Backend, geometry: Geometry) -> int:
    """That of the native operators has the best product of speed and memory in use (docs/memory.md)."""
    if backend == "cuda":
        return cuda.best_page_tokens(geometry)
    return 32 if backend == "native" else 64


def choose_backend(wanted: str, strict: bool) -> tuple[Backend, str]:
    """(backend, why) for a configured `auto`, `native` or `gather`. Raises ModelError for what cannot be had.

    `strict` promises the same tokens whatever the batch, chunking, preemption or cache: the native operators keep it,
    for no row's bits depend on another row; ONNX Runtime's own pick their order of summation by the batch.
    """
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


def choose_kv_format(backend: Backend, wanted: KvChoice) -> KvFormat:
    """`auto` is the fastest whose perplexity costs 0.2 % at most (docs/memory.md). Raises as `check_kv_format`."""
    if wanted == "auto":
        return "int8" if backend == "native" else "float16"
    check_kv_format(backend, wanted)
    return wanted


def check_kv_format(backend: Backend, kv_format: KvFormat) -> None:
    """Raises ModelError for K and V that a backend cannot read."""
    if backend == "gather" and kv_format == "int8":
        raise ModelError("int8 K and V need the native backend: ONNX Runtime's own operators read float16 and float32")
    if backend == "cuda" and kv_format != "float16":
        raise ModelError(f"K and V in {kv_format} are for the CPU: the graph for CUDA reads float16")
