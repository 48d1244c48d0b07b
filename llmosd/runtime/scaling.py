"""How engine steps speed up with threads on this machine: raw timings for Amdahl's law, kept beside the graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import onnxruntime

from llmosd.runtime.backend import choose_kv_format
from llmosd.runtime.fetch import Progress
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import Backend, PagedModel

ROUNDS = 9
WARM_UP, STEPS = 2, 5  # of each round and thread count; the timing of a round is the median of its steps
SEQUENCES, CONTEXT, PAGE_TOKENS = 8, 128, 32
ALL_COUNTS_TO = 8  # beyond, powers of two and the whole machine


class Scaling(msgspec.Struct, frozen=True):
    """Step times in seconds at each thread count, one a round; empty on one core."""

    cores: int
    onnxruntime: str
    samples: dict[int, tuple[float, ...]]


def ensure(model: InstalledModel, backend: Backend, cores: int, progress: Progress) -> Scaling:
    """The stored timings of this machine, measured now unless they are there. Raises ModelError.

    Takes about half a second a round and thread count, and wants the machine for itself.
    """
    path = ensure_graph(model, backend, "file", progress).with_name("scaling.json")
    if (stored := _read(path)) and (stored.cores, stored.onnxruntime) == (cores, onnxruntime.__version__):
        return stored
    counts = thread_counts(cores) if cores > 1 else []
    scaling = Scaling(cores, onnxruntime.__version__, measure(model, backend, counts, progress))
    scratch = path.with_suffix(".partial")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(scaling)))
    scratch.replace(path)
    return scaling


def measure(
    model: InstalledModel, backend: Backend, counts: Sequence[int], progress: Progress
) -> dict[int, tuple[float, ...]]:
    """Time a decode batch at each thread count in turn, round after round, so that a slow spell hits all alike.

    Threads wait awake between operators for a moment, as they do in the daemon unless it is told otherwise.
    """
    samples: dict[int, list[float]] = {count: [] for count in counts}
    done, total = 0, ROUNDS * len(counts)
    for _ in range(ROUNDS):
        for count in counts:
            samples[count].append(_step_seconds(model, backend, count))
            done += 1
            progress("measure", done, total)
    return {count: tuple(times) for count, times in samples.items()}


def thread_counts(cores: int) -> list[int]:
    if cores <= ALL_COUNTS_TO:
        return list(range(1, cores + 1))
    return sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})


def _step_seconds(model: InstalledModel, backend: Backend, threads: int) -> float:
    columns = -(-(CONTEXT + 1) // PAGE_TOKENS)
    engine = PagedModel.load(
        model,
        backend=backend,
        weights="file",
        pages=SEQUENCES * columns,
        page_tokens=PAGE_TOKENS,
        threads=threads,
        spin=True,
        kv_format=choose_kv_format(backend, "auto"),
    )
    step = (
        np.arange(100, 100 + SEQUENCES),
        np.arange(SEQUENCES + 1, dtype=np.int32),
        np.full(SEQUENCES, CONTEXT, np.int32),
        np.arange(engine.pages, dtype=np.int32).reshape(SEQUENCES, columns),
        np.arange(SEQUENCES),
    )
    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        engine.run(*step)
        times.append(time.perf_counter() - start)
    engine.close()
    return median(times[WARM_UP:])


def _read(path: Path) -> Scaling | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scaling)
    except (OSError, msgspec.MsgspecError):
        return None
