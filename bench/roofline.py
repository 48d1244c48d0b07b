"""The least time a step can take on this machine: its bytes at the speed of memory, its arithmetic at that of float32.

Bytes are the weights once and every sequence's K/V once; arithmetic counts a multiply and an add as two. Integer
products may run faster than float32's, so a floor by arithmetic is not quite a limit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gguf import GGUFReader

from llmosd.config import Config
from llmosd.runtime.backend import choose_kv_format
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_pool import bytes_per_page

SOURCE = Path(__file__).parent / "machine_limits.cpp"


@dataclass(frozen=True, slots=True)
class Limits:
    gb_per_s: float
    gflop_per_s: float


@dataclass(frozen=True, slots=True)
class Floor:
    ms: float
    bound: str  # by memory or by compute
    megabytes: float
    gflop: float


def measure_limits(threads: int, architecture: str) -> Limits:
    """Compiles a small program for `architecture` with the system's compiler, or ziglang's, and runs it."""
    compiler = shutil.which("c++")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "c++"]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/limits"
        flags = ["-O3", f"-march={architecture}", "-std=c++17", "-ffp-contract=fast", "-pthread"]
        subprocess.run([*command, *flags, str(SOURCE), "-o", program], check=True)
        answer = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)
    read, compute = map(float, answer.stdout.split())
    return Limits(read, compute)


def floor(model: InstalledModel, method: str, batch: int, context: int, prompt: int, limits: Limits) -> Floor:
    """Of one decode step of `batch` sequences, of one prompt from nothing, or of both in one step."""
    decodes = batch if method != "prefill" else 0
    fed = decodes + prompt
    config, g = Config(), model.geometry
    token_bytes = bytes_per_page(g, 1, choose_kv_format("native", config.kv_format))
    weight_bytes, layer_weights = _weights(model.source)
    head_weights = g.vocab * g.hidden
    attended = decodes * context + prompt * prompt / 2
    read = weight_bytes + (decodes * context + prompt) * token_bytes
    flops = 2.0 * (layer_weights * fed + head_weights * (decodes + bool(prompt)))
    flops += 4 * g.layers * g.heads * g.head_dim * attended
    by_memory, by_compute = read / limits.gb_per_s / 1e6, flops / limits.gflop_per_s / 1e6
    return Floor(max(by_memory, by_compute), "memory" if by_memory > by_compute else "compute", read / 1e6, flops / 1e9)


@cache
def _weights(source: Path) -> tuple[int, int]:
    """(bytes of all weights, matrix entries of the layers)."""
    tensors = GGUFReader(source).tensors
    layers = sum(int(t.n_elements) for t in tensors if t.name.startswith("blk."))
    return sum(int(t.n_bytes) for t in tensors), layers
