"""A prefix in common: what is computed of it, and what finding it costs.

Sixteen prompts share their first 500, 515 or 530 tokens, which is not a whole number of pages, and go on for 20 to 35
of their own; all come at once, or each when the one before it has ended. Kernel, executor and installed model are
driven directly. Then the kernel alone, its CPU time: a lookup of 4,000 known tokens, a step's plan while such a prompt
waits in the queue, and the plan that takes in 32 short prompts which have nothing in common.

python bench/prefixes.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import machine_facts

from llmosd.config import default_home
from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.runtime.backend import best_page_tokens, choose_backend, choose_kv_format
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import find
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.executor import Executor
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import Ended, Nanoseconds, Output, Plan, RequestSpec, Sampling

PREFIXES, REQUESTS, ANSWER, BUDGET = (500, 515, 530), 16, 8, 256
KNOWN, SHORT = 4000, 8  # tokens of a prompt
REPEATS = 50


class Run:
    """A kernel, whoever executes its plans, and what came of them."""

    def __init__(self, kernel: Kernel, executor: Executor, now: Callable[[], Nanoseconds] = time.monotonic_ns) -> None:
        self.kernel, self._executor, self._now = kernel, executor, now
        self.plan_us: list[float] = []
        self.ttft_ms: list[float] = []
        self.answers: dict[str, tuple[int, ...]] = {}
        self._submitted: dict[str, Nanoseconds] = {}

    def submit(self, name: str, prompt: list[int], answer: int) -> None:
        self._submitted[name] = self._now()
        sampling = Sampling(temperature=0.0, max_tokens=answer, ignore_eos=True)
        self.kernel.submit(RequestSpec(name, "m", prompt, sampling), self._now())

    def step(self) -> None:
        began = time.thread_time_ns()
        plan = self.kernel.plan(self._now())
        self.plan_us.append((time.thread_time_ns() - began) / 1e3)
        assert isinstance(plan, Plan)
        for event in self.kernel.commit(plan, self._executor.execute(plan), self._now()):
            if isinstance(event, Output):
                if event.id not in self.answers:
                    self.ttft_ms.append((event.now - self._submitted[event.id]) / 1e6)
                self.answers[event.id] = self.answers.get(event.id, ()) + event.tokens
            elif isinstance(event, Ended):
                assert event.request.error is None

    def finish(self) -> None:
        while not self.kernel.idle:
            self.step()


def acceptance(model: PagedModel, tokenizer: Tokenizer, prefix: int, together: bool, remember: bool) -> Run:
    draw, vocabulary = random.Random(prefix), tokenizer.vocab_size - 100
    beginning = [draw.randrange(100, vocabulary) for _ in range(prefix)]
    kernel = Kernel(
        Limits(REQUESTS, BUDGET, 100, 1024, model.page_tokens, model.pages),
        POLICIES["fcfs"](),
        prefixes=b"a secret" if remember else None,
    )
    run = Run(kernel, OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns))
    for number in range(REQUESTS):
        run.submit(str(number), [*beginning, *(draw.randrange(100, vocabulary) for _ in range(20 + number))], ANSWER)
        if not together:
            run.finish()
    run.finish()
    return run


def measure(model: PagedModel, tokenizer: Tokenizer, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Ratios: tokens computed to distinct ones, and the last request's time to its first token to the first one's."""
    results = []
    for prefix in PREFIXES:
        distinct = prefix + sum(20 + number for number in range(REQUESTS))
        without = acceptance(model, tokenizer, prefix, True, False)
        for together in (True, False):
            run = acceptance(model, tokenizer, prefix, together, True)
            computed, all_tokens = run.kernel.stats(False).prompt_tokens, without.kernel.stats(False).prompt_tokens
            row = {
                "prefix": prefix,
                "together": together,
                "computed": computed,
                "computed_to_distinct": computed / distinct,
                "computed_to_all": computed / all_tokens,
                "last_ttft_to_first": run.ttft_ms[-1] / run.ttft_ms[0],
                "same_answers": run.answers == without.answers,
            }
            results.append(row)
            say(
                f"{prefix} tokens, {'all at once' if together else 'one by one '}: computed"
                f" {computed / distinct:.3f} of distinct, {computed / all_tokens:.3f} of all;"
                f" TTFT {run.ttft_ms[0]:.0f} ms, 16th's {run.ttft_ms[-1]:.0f}"
                f" ({100 * run.ttft_ms[-1] / run.ttft_ms[0]:.1f} %);"
                f" answers {'alike' if run.answers == without.answers else 'DIFFER'}"
            )
    return results


def simulated(slots: int, pages: int, size: int) -> Run:
    clock = ManualClock()
    kernel = Kernel(Limits(slots, BUDGET, 100, 8192, size, pages), POLICIES["fcfs"](), prefixes=b"a secret")
    executor = CostModelExecutor(
        CostModel(8e6, 0.35e6, 0.4e6, 600), lambda start: start.sampling.max_tokens or 1, clock
    )
    return Run(kernel, executor, lambda: clock.now)


def lookup_us(size: int, draw: random.Random) -> float:
    """Finding the pages of a prompt that is known but for its last token."""
    run, prompt = simulated(4, 20_000 // size, size), [draw.randrange(40_000) for _ in range(KNOWN + 1)]
    run.submit("first", prompt, 1)
    run.finish()
    took = []
    for number in range(REPEATS):
        run.submit(str(number), prompt, 1)
        request = run.kernel._requests[str(number)]
        began = time.thread_time_ns()
        path = run.kernel._scheduler.reuse.path(request)
        took.append((time.thread_time_ns() - began) / 1e3)
        assert len(path) == KNOWN // size
        run.finish()
    return statistics.median(took)


def waiting_us(size: int, draw: random.Random) -> float:
    """A plan for one decode, while a prompt whose beginning is known does not fit the pool."""
    run, prompt = simulated(4, 8000 // size, size), [draw.randrange(40_000) for _ in range(KNOWN)]
    run.submit("known", prompt, 2)
    run.finish()
    run.submit("running", [1] * (KNOWN - 100), 300)
    while not run.answers.get("running"):
        run.step()
    run.submit("waiting", [*prompt, *([1] * 1000)], 2)
    run.plan_us.clear()
    for _ in range(REPEATS):
        run.step()
    assert run.kernel.stats(False).waiting == 1
    return statistics.median(run.plan_us)


def unrelated_us(size: int, draw: random.Random) -> float:
    """The plan that feeds 32 short prompts to one step, each of which could wait for one before it."""
    took = []
    for _ in range(REPEATS):
        run = simulated(32, 4096, size)
        for number in range(32):
            run.submit(str(number), [draw.randrange(40_000) for _ in range(SHORT)], 2)
        run.step()
        took.append(run.plan_us[0])
    return statistics.median(took)


def bookkeeping(size: int, say: Callable[[str], None]) -> dict[str, float]:
    draw = random.Random(0)
    found = {
        "lookup_us": lookup_us(size, draw),
        "plan_beside_a_waiting_one_us": waiting_us(size, draw),
        "plan_of_32_unrelated_us": unrelated_us(size, draw),
    }
    say(f"pages of {size} tokens, CPU µs: " + ", ".join(f"{name} {value:.0f}" for name, value in found.items()))
    return {"page_tokens": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    installed = find(options.home, options.model)
    backend, _ = choose_backend("auto", strict=True)
    ensure_graph(installed, backend, "file", lambda stage, done, total: None)
    page, facts = best_page_tokens(backend, installed.geometry), machine_facts()
    model = PagedModel.load(
        installed,
        backend=backend,
        weights="file",
        pages=REQUESTS * 1024 // page,
        page_tokens=page,
        threads=facts.cores,
        spin=True,
        kv_format=choose_kv_format(backend, "auto"),
        strict=True,
    )
    tokenizer = installed.load_tokenizer()
    acceptance(model, tokenizer, 100, True, False)  # to warm up
    results = {
        "machine": asdict(facts),
        "shared": measure(model, tokenizer, print),
        "bookkeeping": [bookkeeping(size, print) for size in (16, 32, 64)],
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
