"""Which page size, and which format of K and V: memory wasted in sequences' last pages, and speed, in pairs.

The waste is that of requests with lognormal prompts (mean 150 tokens, C² 0.81) and geometric answers (mean 80, 512 at
most): at their ends, and over all steps of a run of the kernel, where it is checked to be Σ(−length mod page) exactly.
Speed is that of the bare graph on pages in random order: in each round every variant computes every cell, one after the
other, and is compared with the first variant of the same round.

python bench/pages.py [--only waste|sizes|formats] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from facts import machine_facts
from numpy.typing import NDArray
from statistics95 import median_interval

from llmosd.config import default_home
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.runtime import native
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.page_pool import SCALE_BYTES
from llmosd.runtime.paged_model import PagedModel
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import KvFormat, RequestSpec, Sampling, State

SIZES, ON_CPU = (16, 32, 64, 128, 256), (16, 32, 64, 128)  # 256 suits GPUs
CONTEXTS, BATCHES, SPREAD = (128, 512, 1500), (1, 8, 32), 64
CHUNK = 256  # tokens of a prefill step
WINDOW_S = 0.12  # a variant's turn at a cell, and two steps at least


# ---------------------------------------------------------------- waste


def lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """(prompt, answer) tokens of requests."""
    draw, variance = random.Random(seed), math.log(1.81)
    return [
        (
            max(1, round(draw.lognormvariate(math.log(150) - variance / 2, math.sqrt(variance)))),
            min(512, 1 + int(math.log(1 - draw.random()) / math.log(1 - 1 / 80))),
        )
        for _ in range(count)
    ]


def waste(held: Iterable[tuple[int, int]], page: int) -> float:
    """Share of the memory of the pages held that no token is in; `held` has (length, how often)."""
    empty = sum(-length % page * times for length, times in held)
    full = sum(-(-length // page) * page * times for length, times in held)
    return empty / full


def ends(requests: list[tuple[int, int]]) -> Counter[int]:
    """The last token of an answer is never fed."""
    return Counter(prompt + answer - 1 for prompt, answer in requests)


def lives(requests: list[tuple[int, int]], page: int) -> Counter[int]:
    """Tokens in pages of each request after each step of a kernel with 16 slots at 70 % of what they can bear."""
    cost, clock = CostModel(step=8e6, prefill=0.35e6, decode=0.4e6, context=600), ManualClock()
    answers = {f"r{number}": answer for number, (_, answer) in enumerate(requests)}
    kernel = Kernel(Limits(16, CHUNK, len(requests), 16384, page, 16 * 16384 // page), POLICIES["fcfs"]())
    executor = CostModelExecutor(cost, lambda start: start.sampling.max_tokens or 1, clock)
    draw, found = random.Random(0), Counter[int]()
    arrivals = [(f"r{number}", prompt) for number, (prompt, _) in enumerate(requests)]
    due = 0
    while arrivals or not kernel.idle:
        while arrivals and due <= clock.now:
            name, prompt = arrivals.pop()
            spec = RequestSpec(name, "m", [1] * prompt, Sampling(max_tokens=answers[name], ignore_eos=True))
            kernel.submit(spec, clock.now)
            due += round(draw.expovariate(0.7 * 7.4) * 1e9)
        if (plan := kernel.plan(clock.now)) is None:
            clock.now = due
            continue
        kernel.commit(plan, executor.execute(plan), clock.now)
        running = [view for view in kernel.views() if view.state in (State.PREFILL, State.DECODE)]
        tokens = [view.cached_tokens + max(0, view.completion_tokens - 1) for view in running]
        empty = kernel.stats(False).pages_used * page - sum(tokens)
        assert empty == sum(-length % page for length in tokens), "pages are held that nobody needs"
        found.update(tokens)
    return found


def measure_waste(say: Callable[[str], None]) -> list[dict[str, float]]:
    many, few = lengths(100_000, 0), lengths(2_000, 1)
    results = [
        {
            "page_tokens": page,
            "at_end": waste(ends(many).items(), page),
            "in_life": waste(lives(few, page).items(), page),
        }
        for page in SIZES
    ]
    say(f"waste of pages held: {len(many)} requests at their ends, {len(few)} over all steps of a run")
    for row in results:
        say(f"{row['page_tokens']:>5} tokens {100 * row['at_end']:6.2f} % {100 * row['in_life']:6.2f} %")
    assert max(results[0]["at_end"], results[0]["in_life"]) < 0.04, "pages of 16 tokens waste too much"
    return results


def weigh(waste_by_size: list[dict[str, float]], speeds: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    """A full pool serves as many requests as its pages in use hold, each at the speed of its page size."""
    say("speed × memory in use")
    for row in waste_by_size:
        if (page := row["page_tokens"]) in ON_CPU:
            say(f"{page:>5} tokens {mean_speed(speeds, f'{page} tokens') * (1 - row['in_life']):.3f}")


# ---------------------------------------------------------------- speed


@dataclass(frozen=True, slots=True)
class Cell:
    """So many sequences that each feed `count` tokens behind about `context`."""

    batch: int
    context: int
    count: int = 1

    @property
    def name(self) -> str:
        what = "decode" if self.count == 1 else f"prefill of {self.count}"
        return f"{what}, B{self.batch}, context {self.context}"


CELLS = [
    *(Cell(batch, context) for batch in BATCHES for context in CONTEXTS),
    Cell(1, 0, CHUNK),
    Cell(1, 1250, CHUNK),
]


class Variant:
    """A model with pages of one size and format, enough for the largest cell and full of numbers."""

    def __init__(self, installed: InstalledModel, page: int, kv_format: KvFormat) -> None:
        self._columns = -(-(max(CONTEXTS) + 2 * SPREAD) // page)
        self._model = PagedModel.load(
            installed,
            backend="native",
            weights="file",
            pages=max(BATCHES) * self._columns,
            page_tokens=page,
            threads=machine_facts().cores,
            spin=True,
            kv_format=kv_format,
        )
        fill(self._model)

    def window(self, cell: Cell) -> float:
        """Seconds of a step, the median of a window; the step before it does not count."""
        draw = np.random.default_rng(cell.batch + cell.context)
        pages = draw.permutation(self._model.pages).astype(np.int32)
        table = pages[: cell.batch * self._columns].reshape(cell.batch, -1)
        spread = SPREAD if cell.count == 1 else 0
        past = (cell.context + draw.integers(-spread, spread + 1, cell.batch)).astype(np.int32)
        borders = (cell.count * np.arange(cell.batch + 1)).astype(np.int32)
        tokens = draw.integers(3, 40_000, cell.batch * cell.count)
        seconds: list[float] = []
        while len(seconds) < 3 or sum(seconds[1:]) < WINDOW_S:
            began = time.perf_counter()
            self._model.run(tokens, borders, past, table, borders[1:].astype(np.int64) - 1)
            seconds.append(time.perf_counter() - began)
            past = past + np.int32(cell.count == 1)
        return statistics.median(seconds[1:])

    def close(self) -> None:
        self._model.close()


def fill(model: PagedModel) -> None:
    """Memory that was never written to is all one page of zeros to the processor."""
    draw = np.random.default_rng(0)
    for array in [*model.keys, *model.values]:
        if model.kv_format != "int8":
            array[:] = draw.standard_normal(array.shape[1:], np.float32)
            continue
        array[:] = draw.integers(-127, 128, array.shape[1:], np.int8)
        heads: NDArray[np.int8] = array.reshape(model.pages, model.geometry.kv_heads, -1)
        heads[..., -SCALE_BYTES * model.page_tokens :] = np.full(model.page_tokens, 0.01, np.float32).view(np.int8)


def compare(
    installed: InstalledModel, variants: dict[str, tuple[int, KvFormat]], rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Each cell's tokens/s by variant, and how much faster each is than the first."""
    models = {name: Variant(installed, *how) for name, how in variants.items()}
    seconds: dict[tuple[Cell, str], list[float]] = {(cell, name): [] for cell in CELLS for name in models}
    for turn in range(rounds):
        for cell in CELLS:
            for name in sorted(models, reverse=turn % 2 == 1):
                seconds[cell, name].append(models[name].window(cell))
    for model in models.values():
        model.close()
    first, *_ = variants
    results = []
    for cell in CELLS:
        row: dict[str, Any] = {"cell": cell.name, "rounds": rounds, "variants": {}}
        for name in variants:
            own = seconds[cell, name]
            ratios = [base / mine for base, mine in zip(seconds[cell, first], own, strict=True)]
            per_s = cell.batch * cell.count / statistics.median(own)
            row["variants"][name] = {"tokens_per_s": per_s, "speed": asdict(median_interval(ratios))}
        results.append(row)
    report(results, say)
    return results


def report(results: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    names = list(results[0]["variants"])
    say(f"tokens/s, and speed beside {names[0]} (95 % interval of the median, {results[0]['rounds']} rounds)")
    say(f"{'':34}" + "".join(f"{name:>26}" for name in names))
    for row in results:
        cells = [
            f"{one['tokens_per_s']:8.0f}  {speed['median']:.2f} ({speed['low']:.2f}–{speed['high']:.2f})"
            for one in row["variants"].values()
            for speed in [one["speed"]]
        ]
        say(f"{row['cell']:34}" + "".join(f"{cell:>26}" for cell in cells))
    say(f"{'geometric mean':34}" + "".join(f"{mean_speed(results, name):>26.3f}" for name in names))


def mean_speed(results: list[dict[str, Any]], name: str) -> float:
    return statistics.geometric_mean(row["variants"][name]["speed"]["median"] for row in results)


def use_kernels(isa: str | None) -> str:
    """Choose among the native operators' kernels; the name of those that run."""
    found = native.status()
    assert found.path is not None and found.isa is not None, found.why
    if isa and not native.load(found.path).llmos_use_kernels(isa.encode()):
        raise SystemExit(f"this machine has no kernels for {isa}")
    return isa or found.isa


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("waste", "sizes", "formats"), help="one of the three tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also put the results there, beside those in it")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--page-tokens", type=int, default=32, help="page size at which formats are compared")
    parser.add_argument("--kv-format", default="int8", help="format in which page sizes are compared")
    parser.add_argument("--isa", help="use the kernels for this instruction set instead of the best ones")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    installed = find(options.home, options.model)
    ensure_graph(installed, "native", "file", lambda stage, done, total: None)
    isa = use_kernels(options.isa)
    old = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    results: dict[str, Any] = {**old, "machine": asdict(machine_facts()), "model": installed.id}
    wanted = (options.only,) if options.only else ("waste", "sizes", "formats")
    if "waste" in wanted:
        results["waste"] = measure_waste(print)
    if "sizes" in wanted:
        order = sorted(ON_CPU, key=lambda page: page != 64)
        variants = {f"{page} tokens": (page, options.kv_format) for page in order}
        speeds = results[f"sizes, {options.kv_format}, {isa}"] = compare(installed, variants, options.rounds, print)
        if "waste" in results:
            weigh(results["waste"], speeds, print)
    if "formats" in wanted:
        formats = {kind: (options.page_tokens, kind) for kind in get_args(KvFormat)}
        results[f"formats, {options.page_tokens} tokens, {isa}"] = compare(installed, formats, options.rounds, print)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
