"""Does a model stay within the memory that `llmosd models show` says? Loads it, works it hard, reads /proc (Linux).

python bench/footprint.py [--home DIR] [--model ID] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llmosd.config import default_home
from llmosd.runtime import native
from llmosd.runtime.backend import best_page_tokens
from llmosd.runtime.footprint import footprint
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.paged_model import PagedModel, choose_kv_format

TOKENS, ROWS = 256, 32  # of a step, and sequences at once: the daemon's defaults, as its pages are
MIB = 1 << 20


def measure(model: InstalledModel, context: int) -> dict[str, float]:
    """Peaks in MiB over the process before the model, with a pool that is filled, and what was foretold."""
    native.status()  # the library and its self-test belong to the process
    graph = ensure_graph(model, "native", "file", lambda stage, done, total: None)
    page_tokens, kv_format = best_page_tokens("native", model.geometry), choose_kv_format("native", "auto")
    columns = -(-context // page_tokens)
    pages = ROWS * columns
    anonymous, mapped = resident()
    began = time.perf_counter()
    engine = PagedModel.load(
        model,
        backend="native",
        weights="file",
        pages=pages,
        page_tokens=page_tokens,
        threads=2,
        spin=False,
        kv_format=kv_format,
    )
    loaded = time.perf_counter() - began
    work(engine, columns, context)
    after, after_mapped = resident()
    foretold = footprint(
        graph,
        model.geometry,
        tokens=TOKENS,
        rows=ROWS,
        pages=pages,
        page_tokens=page_tokens,
        kv_format=kv_format,
    )
    result = {
        "load_s": loaded,
        "private": (after - anonymous) / MIB,
        "mapped": (after_mapped - mapped) / MIB,
        **{f"foretold_{name}": value / MIB for name, value in asdict(foretold).items() if name != "pages"},
        "foretold_private": foretold.private / MIB,
        "pages": pages,
    }
    engine.close()
    return result


def work(engine: PagedModel, columns: int, context: int) -> None:
    """Fill every page of the pool, prefill a whole token budget, decode all sequences at once."""
    for pool in (*engine.keys, *engine.values):
        pool.fill(0)
    table = np.arange(ROWS * columns, dtype=np.int32).reshape(ROWS, columns)
    share = min(TOKENS, context)
    for size in (1, share // 3, share):
        engine.run(np.arange(size) + 2, np.array([0, size], np.int32), np.zeros(1, np.int32), table[:1], np.array([0]))
    ends, past = np.arange(ROWS + 1, dtype=np.int32), np.full(ROWS, context - 1, np.int32)
    for _ in range(2):
        engine.run(np.arange(ROWS) + 2, ends, past, table, np.arange(ROWS))


def resident() -> tuple[int, int]:
    """Bytes in memory: anonymous, and of mapped files."""
    status = Path("/proc/self/status").read_text()
    anonymous, mapped = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("RssAnon", "RssFile"))
    assert anonymous and mapped
    return int(anonymous[1]) << 10, int(mapped[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description="memory of a loaded model against the formula")
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    found = measure(find(args.home, args.model), args.context)
    for name, value in found.items():
        print(f"{name:20} {value:10.2f}")
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
