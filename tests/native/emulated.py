"""Native operators in a program for another processor, run by an emulator: `run` as that of native_operators."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from native_operators import TYPES, Array

KINDS = {element: kind for kind, element in TYPES.items()}


@dataclass(frozen=True)
class Emulated:
    """One set of kernels; `program` is emulated_runtime.cpp with the library."""

    emulator: str
    program: Path
    isa: str

    def run(self, op: str, inputs: Sequence[Array | None], *, threads: int = 1, **attributes: Any) -> Array:
        """Caches among the inputs are written in place. Raises ValueError with the operator's words."""
        lines = io.BytesIO()
        lines.write(f"{self.isa}\n{op}\n".encode())
        for name, value in {**attributes, "threads": threads}.items():
            number = float(value) if isinstance(value, float) else int(value)
            lines.write(f"{'real' if isinstance(value, float) else 'int'} {name} {number!r}\n".encode())
        for array in inputs:
            lines.write(_said(array) if array is not None else b"absent\n")
        lines.write(b"run\n")
        command = [self.emulator, str(self.program)]
        answer = io.BytesIO(subprocess.run(command, input=lines.getvalue(), capture_output=True, check=True).stdout)
        if (words := answer.readline()) != b"ok\n":
            raise ValueError(words.decode())
        output = _heard(answer)
        for array in (one for one in inputs if one is not None):
            array[...] = _heard(answer)
        return output


def _said(array: Array) -> bytes:
    head = " ".join(map(str, ("tensor", TYPES[array.dtype], *array.shape)))
    return f"{head}\n".encode() + np.ascontiguousarray(array).tobytes()


def _heard(answer: io.BytesIO) -> Array:
    _, element, *dims = map(int, answer.readline().replace(b"tensor", b"0").split())
    kind = KINDS[element]
    count = int(np.prod(dims, dtype=np.int64))
    return np.frombuffer(answer.read(count * kind.itemsize), kind).reshape(dims).copy()
