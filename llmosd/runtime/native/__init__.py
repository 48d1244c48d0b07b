"""The native operators: whether they can be used, and how to use them in a session.

Domain ``llmos``, version 1: PagedAttention, QLinear, Linear, SwiGLU, Draw (each described at the top of its C++ file).
`build.py` compiles them; nothing here compiles by itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from llmosd.errors import ModelError
from llmosd.runtime.native import build as _build
from llmosd.runtime.native.packing import GATED, PACKING, pack_f32, pack_q4, pack_q8

__all__ = ["GATED", "PACKING", "NativeStatus", "pack_f32", "pack_q4", "pack_q8", "register", "status"]

FIRST_VERSION = (1, 20)
LIBRARY_VARIABLE = "LLMOS_NATIVE_LIBRARY"
"""Environment variable that names another library, as the sanitizer run does."""


@dataclass(frozen=True, slots=True)
class NativeStatus:
    """Whether the operators can be used here; `why` is a sentence for a person, with what to do if they cannot."""

    available: bool
    path: Path | None
    why: str
    compiler: str = ""
    isa: str = ""


@functools.cache
def status() -> NativeStatus:
    """Find, load and test the library once for this process, and choose among its sets of kernels."""
    path = Path(os.environ.get(LIBRARY_VARIABLE) or _build.library())
    command = f"run `python {_build.HERE / 'build.py'}`"
    if not path.exists():
        return NativeStatus(False, None, f"the native operators are not built: {command}")
    if not _build.is_current(path):
        return NativeStatus(False, path, f"the native operators were built from other sources: {command}")
    if not _supported(onnxruntime.__version__):
        return NativeStatus(False, path, f"onnxruntime {onnxruntime.__version__} is not within >= 1.20, < 2")
    try:
        library = load(path)
        failures = _choose_kernels(path, library)
    except (OSError, ModelError) as error:
        return NativeStatus(False, path, f"the native operators do not work here: {error}")
    isa, compiler = library.llmos_instruction_set().decode(), library.llmos_compiler().decode()
    why = "; ".join([f"native operators for {isa}, built by {compiler}", *(f"not for {one}" for one in failures)])
    return NativeStatus(True, path, why, compiler, isa)


def register(options: onnxruntime.SessionOptions) -> None:
    """Make the operators known to sessions created with `options`; raises ModelError if they cannot be used."""
    found = status()
    if not found.available:
        raise ModelError(found.why)
    options.register_custom_ops_library(str(found.path))


def rows_together(strict: bool) -> int:
    """Rows that a step's products take hardly longer for than for a few (kernels/tiles_bf16.h)."""
    return 32 if status().isa == "amx" and not strict else 1


def draw_ended() -> ctypes.c_int64:
    """Holds when the last draw within a graph ended, by the clock of time.perf_counter_ns."""
    found = status()
    assert found.path is not None, "no graph draws without the library"
    return ctypes.c_int64.in_dll(load(found.path), "llmos_draw_ended_ns")


def load(path: Path) -> ctypes.CDLL:
    """The library's entry points beside the operators: drawing tokens, moving pages, facts, choice of kernels."""
    library = ctypes.CDLL(str(path))
    library.llmos_instruction_set.restype = ctypes.c_char_p
    library.llmos_instruction_sets.restype = ctypes.c_char_p
    library.llmos_compiler.restype = ctypes.c_char_p
    library.llmos_use_kernels.argtypes = [ctypes.c_char_p]
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.llmos_draw.argtypes = [pointer, pointer, count, count, pointer, count, pointer]
    library.llmos_sampler_open.argtypes, library.llmos_sampler_open.restype = [ctypes.c_int], pointer
    page = (pointer, count, count, count, pointer)
    library.llmos_gather_page.argtypes, library.llmos_gather_page.restype = page, None
    library.llmos_scatter_page.argtypes, library.llmos_scatter_page.restype = page, None
    library.llmos_xxh64.argtypes, library.llmos_xxh64.restype = [pointer, count], ctypes.c_uint64
    library.llmos_sampler_close.argtypes, library.llmos_sampler_close.restype = [pointer], None
    return library


def _supported(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return major == FIRST_VERSION[0] and minor >= FIRST_VERSION[1]


def _choose_kernels(path: Path, library: ctypes.CDLL) -> list[str]:
    """Use the best kernels that pass the self-test; returns the better ones that did not. ModelError if none passes."""
    from llmosd.runtime.native import selftest  # imports onnx, which only a daemon that loads a model needs

    failures: list[str] = []
    for name in library.llmos_instruction_sets().decode().split():
        library.llmos_use_kernels(name.encode())
        try:
            selftest.run(path)
        except ModelError as error:
            failures.append(f"{name}: {error}")
        else:
            return failures
    raise ModelError("; ".join(failures))
