"""Which operators a model runs on, and where the graph that uses them lies."""

from __future__ import annotations

from typing import Literal

from llmosd.errors import ModelError
from llmosd.runtime import native

Backend = Literal["native", "gather"]


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
