"""How fast each native operator is on this machine, at the shapes of SmolLM2-135M.

Every case runs in a session of its own on random data. Weights and caches are several copies that take turns, so that
they come from memory as they do in a model whose layers follow each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from facts import machine_facts
from numpy.typing import NDArray
from onnx import TensorProto, helper

from llmosd.runtime import native

Array = NDArray[Any]

HEADS, KV_HEADS, HEAD_SIZE, PAGE_TOKENS = 9, 3, 64, 32
HIDDEN, FEED_FORWARD, VOCABULARY = 576, 1536, 49152
FOOTPRINT = 96 << 20  # bytes of weights or caches that take turns: more than a last-level cache holds
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}


@dataclass(frozen=True)
class Case:
    name: str
    op: str
    inputs: list[list[Array]]  # one list for each turn
    attributes: dict[str, Any]
    operations: float
    bytes: float  # weights or caches that have to be read


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    median_us: float
    best_us: float
    gops: float  # of the median
    gbps: float


def turns(size: int) -> range:
    return range(max(1, min(32, FOOTPRINT // max(size, 1))))


def linear_case(bits: int, rows: int, n: int, k: int) -> Case:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, k), np.float32)
    attributes: dict[str, Any] = {"N": n, "K": k}
    scales = np.full((n, k // 32), 0.01, np.float32)
    if bits == 32:
        packed: tuple[Array, ...] = (native.pack_f32(rng.standard_normal((n, k), np.float32)),)
    elif bits == 8:
        packed = native.pack_q8(rng.integers(-127, 128, (n, k), np.int8), scales)
    else:
        packed = native.pack_q4(rng.integers(0, 16, (n, k), np.uint8), scales, -8 * scales)
    if bits != 32:
        attributes["bits"] = bits
    size = sum(array.nbytes for array in packed)
    copies = [[x, *(array.copy() for array in packed)] for _ in turns(size)]
    op = "Linear" if bits == 32 else "QLinear"
    return Case(f"{op} {bits} bits {rows} x {k} -> {n}", op, copies, attributes, 2.0 * rows * n * k, size)


def attention_case(kind: str, batch: int, past: int, count: int, exact: int = 1) -> Case:
    rng = np.random.default_rng(0)
    columns = -(-(past + count) // PAGE_TOKENS)
    pages = batch * columns * KV_HEADS
    qkv = rng.standard_normal((batch * count, (HEADS + 2 * KV_HEADS) * HEAD_SIZE), np.float32)
    angles = np.outer(np.arange(past + count), 10000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE))
    rest = [
        np.arange(0, batch * count + 1, count, dtype=np.int32),
        np.full(batch, past, np.int32),
        rng.permutation(batch * columns).astype(np.int32).reshape(batch, columns),
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
    ]
    if kind == "int8":  # a page's codes, then its scales
        codes = rng.integers(-127, 128, (pages, HEAD_SIZE * PAGE_TOKENS), np.int8)
        scales = np.full((pages, PAGE_TOKENS), 0.02, np.float32).view(np.int8)
        cache, width = np.concatenate([codes, scales], axis=1), HEAD_SIZE + 4
    else:
        cache, width = rng.standard_normal((pages, HEAD_SIZE * PAGE_TOKENS), np.float32).astype(kind), HEAD_SIZE
    keys = (batch * columns, KV_HEADS, width, PAGE_TOKENS)
    values = (batch * columns, KV_HEADS, PAGE_TOKENS, width)
    size = 2 * cache.nbytes
    copies = [[qkv, cache.reshape(keys).copy(), cache.reshape(values).copy(), *rest] for _ in turns(size)]
    attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": HEAD_SIZE**-0.5, "exact": exact}
    pairs = batch * sum(past + i + 1 for i in range(count))
    name = f"PagedAttention {kind} {batch} x {count} at {past}{' (exact)' if exact and count > 1 else ''}"
    return Case(name, "PagedAttention", copies, attributes, 4.0 * HEADS * HEAD_SIZE * pairs, size)


def swiglu_case(rows: int) -> Case:
    x = np.random.default_rng(0).standard_normal((rows, 2 * FEED_FORWARD), np.float32)
    return Case(f"SwiGLU {rows} x {FEED_FORWARD}", "SwiGLU", [[x]], {}, 10.0 * rows * FEED_FORWARD, x.nbytes)


def cases() -> Iterator[Case]:
    for bits, rows in itertools.product((4, 32), (1, 8, 32, 256)):
        yield linear_case(bits, rows, 2 * FEED_FORWARD, HIDDEN)
        yield linear_case(bits, rows, HIDDEN, FEED_FORWARD)
    for rows in (1, 8, 32):
        yield linear_case(8, rows, VOCABULARY, HIDDEN)
    for kind in ("int8", "float16", "float32"):
        for batch, past in ((1, 128), (1, 1500), (8, 512), (8, 1500), (32, 512)):
            yield attention_case(kind, batch, past, 1)
        for exact, (past, count) in itertools.product((1, 0), ((0, 32), (0, 256), (0, 512), (0, 1500), (1200, 256))):
            if exact or kind != "float32":
                yield attention_case(kind, 1, past, count, exact)
    for rows in (1, 8, 256):
        yield swiglu_case(rows)


def session(case: Case, threads: int) -> onnxruntime.InferenceSession:
    kinds = [TYPES[array.dtype.name] for array in case.inputs[0]]
    names = [f"x{i}" for i in range(len(kinds))]
    node = helper.make_node(case.op, names, ["y"], domain="llmos", threads=threads, **case.attributes)
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    graph = helper.make_graph([node], "bench", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("llmos", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    native.register(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def measure(case: Case, threads: int, seconds: float) -> Result:
    one = session(case, threads)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    feeds = [{f"x{i}": value(array) for i, array in enumerate(copy)} for copy in case.inputs]
    for feed in feeds:
        one.run_with_ort_values(["y"], feed)
    times: list[float] = []
    end = time.perf_counter() + seconds
    for feed in itertools.cycle(feeds):
        begin = time.perf_counter()
        one.run_with_ort_values(["y"], feed)
        times.append(time.perf_counter() - begin)
        if time.perf_counter() > end and len(times) >= 7:
            break
    median = statistics.median(times)
    micro = (round(median * 1e6, 1), round(min(times) * 1e6, 1))
    return Result(case.name, *micro, round(case.operations / median / 1e9, 1), round(case.bytes / median / 1e9, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    parser.add_argument("--threads", type=int, default=machine_facts().cores)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose names have this in them")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each case")
    options = parser.parse_args()
    results = []
    print(f"{'case':46} {'median us':>10} {'best us':>10} {'GOP/s':>8} {'GB/s':>7}")
    for case in cases():
        if options.only not in case.name:
            continue
        r = measure(case, options.threads, options.seconds)
        results.append(r)
        print(f"{r.name:46} {r.median_us:10.1f} {r.best_us:10.1f} {r.gops:8.1f} {r.gbps:7.1f}", flush=True)
    if options.json:
        report = {
            "machine": asdict(machine_facts()),
            "threads": options.threads,
            "results": [asdict(r) for r in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
