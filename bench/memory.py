"""What paging costs, what the swap file gets out of the disk, and whether the choice of the way back is right.

`bookkeeping`: CPU time in page tables, pool, prefix cache and eviction as a share of a step that decodes 32 sequences.
`disk`: page-outs and page-ins through the executor's threads, checksums included, in pairs with plain writes and reads
of the same file: same flags, no fsync either, blocks of a page, and blocks of 4 MiB.
`chooser`: a pool that holds a quarter of what is asked; evicted requests recompute, swap, or choose, in turn. Where
the disk is slow it is throttled to about where both ways cost the same. All are strict: answers must be equal.

python bench/memory.py [bookkeeping] [disk] [chooser] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import json
import mmap
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from facts import machine_facts
from statistics95 import Interval, median_interval

from llmosd.config import default_home
from llmosd.prediction.costs import FittedTransferCost
from llmosd.prediction.step_model import StepModel
from llmosd.runtime.backend import best_page_tokens, choose_backend, choose_kv_format
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import find
from llmosd.runtime.page_bytes import Bytes
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.swap_file import SwapFile
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system import eviction, pager, pages, prefix_cache, reuse, swap, swapping
from llmosd.system.costs import Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import Evicted, EvictionMode, Output, PageTransfer, Plan, RequestSpec, Restored, Sampling

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a request, in tokens: `shared` ones that others begin with too, its own ones behind them, and the answer."""

    own: int
    answer: int
    shared: int = 0

    @property
    def tokens(self) -> int:
        return self.shared + self.own + self.answer


POOL, SLOTS, BUDGET = 600, 16, 256
LARGE = 4 << 20  # bytes of a block that costs the disk little more than its bytes
MODES: tuple[EvictionMode, ...] = ("recompute", "swap", "auto")


# ---------------------------------------------------------------- bookkeeping

BOOKKEEPING = (
    pages.PagePool,
    pages.PageTable,
    prefix_cache.PrefixCache,
    reuse.PrefixReuse,
    swap.SwapSpace,
    pager.Pager,
    eviction.Eviction,
    swapping.Swapping,
)


class Meter:
    """Time in the outermost calls of all methods of some classes, while it is open."""

    def __init__(self, classes: tuple[type, ...]) -> None:
        self.ns = 0
        self._depth = 0
        self._methods = [
            (kind, name, method)
            for kind in classes
            for name, method in vars(kind).items()
            if callable(method) and not name.startswith("__")
        ]

    def __enter__(self) -> Meter:
        for kind, name, method in self._methods:
            setattr(kind, name, self._metered(method))
        return self

    def __exit__(self, *_: object) -> None:
        for kind, name, method in self._methods:
            setattr(kind, name, method)

    def _metered(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def metered(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return method(*args, **kwargs)
            self._depth = 1
            began = time.perf_counter_ns()
            try:
                return method(*args, **kwargs)
            finally:
                self.ns += time.perf_counter_ns() - began
                self._depth = 0

        return metered


def measure_bookkeeping(model: PagedModel, tokenizer: Tokenizer, rounds: int, say: Say) -> dict[str, Any]:
    """Shares of the time of all steps that decode 32 sequences, page borders and all; one value a round."""
    batch, prompt, answer, shares, kernels = 32, 100, 96, list[float](), list[float]()
    for seed in range(rounds):
        kernel = Kernel(
            Limits(batch, BUDGET, 100, 512, model.page_tokens, model.pages), POLICIES["fcfs"](), prefixes=b"secret"
        )
        executor = OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns)
        submit(kernel, tokenizer, [Shape(prompt, answer)] * batch, seed)
        total = planned = 0
        with Meter(BOOKKEEPING) as meter:
            while not kernel.idle:
                before, began = meter.ns, time.perf_counter_ns()
                plan = kernel.plan(time.monotonic_ns())
                assert plan is not None
                middle = time.perf_counter_ns()
                result = executor.execute(plan)
                after = time.perf_counter_ns()
                kernel.commit(plan, result, time.monotonic_ns())
                ended = time.perf_counter_ns()
                if len(plan.sequences) == batch == plan.query_tokens:
                    total += ended - began
                    planned += ended - after + middle - began
                else:
                    meter.ns = before
        shares.append(meter.ns / total)
        kernels.append(planned / total)
    share, kernel_share = median_interval(shares), median_interval(kernels)
    say(f"bookkeeping {percent(share)} of a step of 32, all of plan and commit {percent(kernel_share)}")
    return {"share": asdict(share), "plan_and_commit": asdict(kernel_share)}


# ---------------------------------------------------------------- disk


def measure_disk(model: PagedModel, directory: Path, pairs: int, say: Say) -> dict[str, Any]:
    """Ratios of bytes/s: page-outs to writes, page-ins to reads."""
    assert model.page_bytes is not None
    for array in (*model.keys, *model.values):
        array.view(np.uint8)[:] = np.random.default_rng(0).integers(0, 256, array.view(np.uint8).shape, np.uint8)
    file = SwapFile(directory, model.pages, model.page_bytes.size)
    transfers = PageTransfers(model.page_bytes, file)
    steps = iter(range(10**9))
    moves = tuple(PageTransfer(page, page) for page in range(model.pages))
    size, total = file.buffer().size, file.buffer().size * model.pages

    def ours(inward: bool) -> float:
        plan = Plan(next(steps), (), page_ins=moves) if inward else Plan(next(steps), (), page_outs=moves)
        began, left = time.perf_counter(), len(moves)
        transfers.start(plan)
        while left:
            done = transfers.finished(at_least_one=True)
            assert not any(one.error for one in done)
            left -= len(done)
        return total / (time.perf_counter() - began)

    def plain(inward: bool, block: int) -> float:
        memory = memoryview(mmap.mmap(-1, block))
        began = time.perf_counter()
        for start in range(0, total - block + 1, block):
            if inward:
                os.preadv(file.fileno(), [memory], start)
            else:
                os.pwrite(file.fileno(), memory, start)
        return total // block * block / (time.perf_counter() - began)

    ours(False), ours(True)
    report: dict[str, Any] = {"page_bytes": model.page_bytes.size, "file_bytes": total, "direct": file.direct}
    for inward, name in ((False, "out"), (True, "in")):
        speeds: dict[str, list[float]] = {"pages": [], "page blocks": [], "4 MiB blocks": []}
        for _ in range(pairs):
            plain_page, plain_large = plain(inward, size), plain(inward, LARGE)
            ours(False)  # what the plain writes left there is no page
            speeds["pages"].append(ours(inward))
            speeds["page blocks"].append(plain_page)
            speeds["4 MiB blocks"].append(plain_large)
        report[name] = {what: statistics.median(values) / 1e9 for what, values in speeds.items()}
        for block in ("page blocks", "4 MiB blocks"):
            ratio = median_interval([a / b for a, b in zip(speeds["pages"], speeds[block], strict=True)])
            report[name][f"to {block}"] = asdict(ratio)
            say(
                f"page-{name}s {report[name]['pages']:.2f} GB/s, {percent(ratio)} of the disk's"
                f" {report[name][block]:.2f} in {block}"
            )
    transfers.close()
    return report


# ---------------------------------------------------------------- chooser


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    requests: tuple[Shape, ...]
    disk: float | None = None  # bytes/s, None for what it gives
    slots: int = SLOTS


def loads(page_bytes: int, token_s: float, page_tokens: int) -> list[Load]:
    """On the slow disk writing and reading a page takes about as long as computing it, for chats and stories half.

    Chats begin alike, with one system prompt: whoever of them gives its pages up finds most of them again, which others
    hold, while all of them would go to disk. What stories have is their own.
    """
    draw = random.Random(3)
    mixed = tuple(Shape(draw.choice((30, 400)), 112) for _ in range(16))
    chats, stories = (Shape(20, 112, shared=640),) * 6, (Shape(30, 144),) * 6
    page_s = token_s * page_tokens
    return [
        Load("short prompts", (Shape(30, 96),) * 24),
        Load("long prompts", (Shape(400, 160),) * 10),
        Load("slow disk", mixed, page_bytes / (page_s / 2)),
        Load("chats and stories", (chats + stories) * 2, page_bytes / (page_s / 4), slots=24),
    ]


class ThrottledFile(SwapFile):
    """A disk that does one thing after the other at so many bytes a second."""

    def __init__(self, directory: Path, slots: int, page_bytes: int, speed: float) -> None:
        super().__init__(directory, slots, page_bytes)
        self._page_s = page_bytes / speed
        self._lock = threading.Lock()

    def write(self, slot: int, buffer: Bytes) -> None:
        with self._lock:
            began = time.perf_counter()
            super().write(slot, buffer)
            time.sleep(max(0.0, began + self._page_s - time.perf_counter()))

    def read(self, slot: int, buffer: Bytes) -> None:
        with self._lock:
            began = time.perf_counter()
            super().read(slot, buffer)
            time.sleep(max(0.0, began + self._page_s - time.perf_counter()))


@dataclass(frozen=True, slots=True)
class Outcome:
    seconds: float
    ways: Counter[str]  # how often each was taken
    expected: float  # seconds that the ways back were to take
    took: float
    answers: dict[str, tuple[int, ...]]


class Bench:
    """One load on one model, again and again; the chooser goes on learning as in a daemon that stays."""

    def __init__(self, model: PagedModel, tokenizer: Tokenizer, directory: Path, load: Load) -> None:
        assert model.page_bytes is not None
        self._model, self._tokenizer, self._directory, self._load = model, tokenizer, directory, load
        size = model.page_tokens
        common = max(shape.shared for shape in load.requests) // size
        asked = common + sum(-(-shape.tokens // size) - shape.shared // size for shape in load.requests[: load.slots])
        self._limits = Limits(load.slots, BUDGET, 100, 1024, size, asked // 4, 2000)
        file = self._file()
        self._costs = Costs(StepModel(), FittedTransferCost(file.probe()))
        file.close()

    def run(self, mode: EvictionMode) -> Outcome:
        assert self._model.page_bytes is not None
        kernel = Kernel(self._limits, POLICIES["fcfs"](), prefixes=os.urandom(16), eviction=mode, costs=self._costs)
        transfers = PageTransfers(self._model.page_bytes, self._file())
        executor = OnnxExecutor(self._model, self._tokenizer, kernel.page_table, kernel.columns, transfers)
        submit(kernel, self._tokenizer, self._load.requests, 5)
        events, began = [], time.perf_counter()
        while not kernel.idle:
            plan = kernel.plan(time.monotonic_ns())
            assert plan is not None
            events += kernel.commit(plan, executor.execute(plan), time.monotonic_ns())
        seconds = time.perf_counter() - began
        transfers.close()
        back = [event for event in events if isinstance(event, Restored)]
        answers: dict[str, tuple[int, ...]] = {}
        for event in events:
            if isinstance(event, Output):
                answers[event.id] = answers.get(event.id, ()) + event.tokens
        return Outcome(
            seconds,
            Counter(event.way for event in events if isinstance(event, Evicted)),
            sum(event.expected_s for event in back),
            sum(event.took_s for event in back),
            answers,
        )

    def _file(self) -> SwapFile:
        assert self._model.page_bytes is not None
        size, slots = self._model.page_bytes.size, self._limits.swap_slots
        if self._load.disk is None:
            return SwapFile(self._directory, slots, size)
        return ThrottledFile(self._directory, slots, size, self._load.disk)


def measure_chooser(
    model: PagedModel, tokenizer: Tokenizer, directory: Path, only: list[str], rounds: int, say: Say
) -> dict[str, Any]:
    assert model.page_bytes is not None
    token_s = prefill_s(model, tokenizer)
    report = {}
    for load in loads(model.page_bytes.size, token_s, model.page_tokens):
        if only and load.name not in only:
            continue
        bench = Bench(model, tokenizer, directory, load)
        bench.run("auto")
        outcomes: dict[str, list[Outcome]] = {mode: [] for mode in MODES}
        for number in range(rounds):
            for mode in MODES[number % 3 :] + MODES[: number % 3]:
                outcomes[mode].append(bench.run(mode))
        every = [outcome.answers for runs in outcomes.values() for outcome in runs]
        assert all(answers == every[0] for answers in every), "the way back changes what is said"
        report[load.name] = judged(load, outcomes, say)
    return report


def judged(load: Load, outcomes: dict[str, list[Outcome]], say: Say) -> dict[str, Any]:
    """The chooser's time to that of the better of the other two, by pairs of a round."""
    seconds = {mode: statistics.median(outcome.seconds for outcome in runs) for mode, runs in outcomes.items()}
    better = min(("recompute", "swap"), key=lambda mode: seconds[mode])
    ratios = {
        mode: median_interval([a.seconds / b.seconds for a, b in zip(outcomes["auto"], outcomes[mode], strict=True)])
        for mode in ("recompute", "swap")
    }
    ways = sum((outcome.ways for outcome in outcomes["auto"]), Counter[str]())
    met = ratios[better].low <= 1.0
    say(
        f"{load.name}: recompute {seconds['recompute']:.2f} s, swap {seconds['swap']:.2f} s, chooser"
        f" {seconds['auto']:.2f} s = {interval(ratios[better])} × {better}"
        f" ({'met' if met else 'SLOWER'}); chose {dict(ways)}"
    )
    return {
        "requests": len(load.requests),
        "disk_mb_per_s": load.disk and load.disk / 1e6,
        "seconds": seconds,
        "ways": {mode: dict(sum((o.ways for o in runs), Counter[str]())) for mode, runs in outcomes.items()},
        "expected_s": {mode: statistics.median(o.expected for o in runs) for mode, runs in outcomes.items()},
        "took_s": {mode: statistics.median(o.took for o in runs) for mode, runs in outcomes.items()},
        "better": better,
        "ratio": {mode: asdict(ratio) for mode, ratio in ratios.items()},
        "met": met,
    }


def prefill_s(model: PagedModel, tokenizer: Tokenizer) -> float:
    """Seconds a token of prefill takes."""
    kernel = Kernel(Limits(SLOTS, BUDGET, 100, 1024, model.page_tokens, model.pages), POLICIES["fcfs"]())
    executor = OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns)
    submit(kernel, tokenizer, [Shape(BUDGET, 1)] * 12, 1)
    took = []
    while not kernel.idle:
        plan = kernel.plan(time.monotonic_ns())
        assert plan is not None
        result = executor.execute(plan)
        kernel.commit(plan, result, time.monotonic_ns())
        took.append(result.execute_ns / plan.query_tokens / 1e9)
    return statistics.median(took)


# ---------------------------------------------------------------- common


def submit(kernel: Kernel, tokenizer: Tokenizer, shapes: Sequence[Shape], seed: int) -> None:
    """Random prompts, answered greedily by so many tokens."""
    draw, now = random.Random(seed), time.monotonic_ns()

    def text(tokens: int) -> list[int]:
        return [draw.randrange(100, tokenizer.vocab_size - 100) for _ in range(tokens)]

    common = text(max(shape.shared for shape in shapes))
    for number, shape in enumerate(shapes):
        sampling = Sampling(temperature=0.0, max_tokens=shape.answer, ignore_eos=True)
        prompt = common[: shape.shared] + text(shape.own)
        kernel.submit(RequestSpec(str(number), kernel.model, prompt, sampling), now)


def percent(value: Interval) -> str:
    digits = 2 if value.median < 0.05 else 0
    return f"{100 * value.median:.{digits}f} % ({100 * value.low:.{digits}f} … {100 * value.high:.{digits}f})"


def interval(value: Interval) -> str:
    return f"{value.median:.3f} ({value.low:.3f} … {value.high:.3f})"


def main() -> None:
    parts = ("bookkeeping", "disk", "chooser")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=parts, help="all without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="other parts that it has are kept")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--directory", type=Path, help="where the swap file lies; without it in the data directory")
    parser.add_argument("--load", action="append", default=[], help="of the chooser's: its name; all without")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    report = run(options, print)
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        report["chooser"] = before.get("chooser", {}) | report.get("chooser", {})
        options.json.write_text(json.dumps(before | report, indent=2) + "\n")


def run(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    installed, facts = find(options.home, options.model), machine_facts()
    backend, _ = choose_backend("auto", strict=True)
    ensure_graph(installed, backend, "file", lambda stage, done, total: None)
    page_tokens = best_page_tokens(backend, installed.geometry)
    model = PagedModel.load(
        installed,
        backend=backend,
        weights="file",
        pages=POOL,
        page_tokens=page_tokens,
        threads=facts.cores,
        spin=True,
        kv_format=choose_kv_format(backend, "auto"),
        strict=True,
    )
    tokenizer, directory = installed.load_tokenizer(), options.directory or options.home
    report: dict[str, Any] = {"machine": asdict(facts)}
    if "bookkeeping" in options.parts:
        report["bookkeeping"] = measure_bookkeeping(model, tokenizer, options.rounds, say)
    if "chooser" in options.parts:
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            report["chooser"] = measure_chooser(model, tokenizer, Path(folder), options.load, options.rounds, say)
    if "disk" in options.parts:
        report["disk"] = measure_disk(model, directory, options.rounds, say)
    return report


if __name__ == "__main__":
    main()
