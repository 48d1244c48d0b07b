"""What a number measured on a machine has to be read with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnxruntime
import psutil

from llmosd.runtime import native


@dataclass(frozen=True, slots=True)
class Facts:
    cpu: str
    cores: int  # physical
    memory_gib: float
    load: float  # mean number of runnable threads over the last minute, before the measurement
    system: str
    python: str
    onnxruntime: str
    numpy: str
    operators: str  # how the native operators were built


def machine_facts() -> Facts:
    status = native.status()
    return Facts(
        cpu=_cpu_model(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        load=round(psutil.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        numpy=numpy.__version__,
        operators=f"{status.compiler} {status.isa}" if status.available else "not built",
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
