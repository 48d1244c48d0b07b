"""What the policies do for those who share a machine: the engine as the daemon builds it, without HTTP.

    flood      one user floods with 50 long requests, another sends a short one each second: fcfs beside fair
    priority   at 120 % of capacity, one request in five is important: fcfs beside priority
    shares     four users with different requests keep the machine busy: Jain's index of what they were charged

Requests are random tokens, no two with a common beginning. Times are the engine's own: from when a request was made to
the step that brought its first token.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import machine_facts

from llmosd.application.assembly import Assembly
from llmosd.application.engine import Batch, Control, Submit, ThreadEngine
from llmosd.config import Config, default_home
from llmosd.prediction.estimators import percentile
from llmosd.runtime.installed import find
from llmosd.system.control import Kill, Selection
from llmosd.system.costs import Prices
from llmosd.system.executor import Executor
from llmosd.system.kernels import Kernels
from llmosd.types import Ended, Output, RequestSpec, Sampling, StepStats

MODEL = "smollm2-135m-instruct"
FLOOD, LONG, SHORT = 50, (100, 800), (100, 16)  # requests; tokens of prompt and answer
LOAD, IMPORTANT, ORDINARY = 1.2, 5, (200, 64)  # of capacity; one request of so many
WINDOW_S = 30.0
SHAPES = {"a": (600, 40), "b": (60, 300), "c": (300, 150), "d": (150, 80)}


class Engine:
    """An engine, and what it has told so far."""

    def __init__(self, home: Path, policy: str) -> None:
        config = Config(home=home, model=MODEL, policy=policy)
        plan = Assembly.draw(config, find(home, MODEL), (), lambda stage, done, total: None)
        self.slots = plan.first.limits.slots
        self.firsts: dict[str, float] = {}  # seconds to the first token
        self.outputs: list[tuple[str, int, int]] = []  # request, tokens, when
        self.steps: list[StepStats] = []
        self.live: set[str] = set()
        self._changed = threading.Condition()
        self._asked: dict[str, int] = {}
        self._ticket = itertools.count(1)
        self._draw = random.Random(0)
        self._plan = plan
        self.prices = Prices()
        self._engine = ThreadEngine(self._build, self._hear)
        self._engine.start()

    def _build(self) -> tuple[Kernels, Executor]:
        kernels, executor = self._plan()
        self.prices = kernels.kernel(MODEL).policy.rules.prices
        return kernels, executor

    def _hear(self, batch: Batch) -> None:
        with self._changed:
            if batch.step:
                self.steps.append(batch.step)
            for event in batch.events:
                if isinstance(event, Output):
                    self.outputs.append((event.id, len(event.tokens), event.now))
                    self.firsts.setdefault(event.id, (event.now - self._asked[event.id]) / 1e9)
                elif isinstance(event, Ended):
                    self.live.discard(event.request.id)
            self._changed.notify_all()

    def submit(self, id: str, shape: tuple[int, int], user: str = "", nice: int = 0) -> None:
        prompt = [self._draw.randrange(1000, 40000) for _ in range(shape[0])]
        now = self._asked[id] = time.monotonic_ns()
        with self._changed:
            self.live.add(id)
        sampling = Sampling(max_tokens=shape[1], temperature=0.8, seed=len(self._asked), ignore_eos=True)
        spec = RequestSpec(id, MODEL, prompt, sampling, user=user, nice=nice, arrived=now)
        self._engine.post(Submit(next(self._ticket), spec))

    def wait(self, until: Callable[[], bool], at_most_s: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(until, at_most_s)

    def empty(self) -> None:
        self._engine.post(Control(next(self._ticket), Kill("measured"), Selection(model=MODEL)))
        self.wait(lambda: not self.live)

    def close(self) -> None:
        self._engine.stop(drain=False)
        self._engine.join()


@contextmanager
def engine(home: Path, policy: str) -> Iterator[Engine]:
    """Warm: it has seen steps of all kinds."""
    one = Engine(home, policy)
    try:
        for number in range(12):
            one.submit(f"warm{number}", (400, 40))
        one.wait(lambda: not one.live)
        yield one
    finally:
        one.close()


def each_second(seconds: float, do: Callable[[int], None]) -> None:
    began = time.monotonic()
    for number in range(round(seconds)):
        time.sleep(max(0.0, began + number - time.monotonic()))
        do(number)


# ------------------------------------------------------------ one user floods


def flood(home: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds. The last short requests under fcfs may not come to their turn before all of the flood has ended."""
    results = {policy: _flooded(home, policy, seconds) for policy in ("fcfs", "fair")}
    fcfs, fair = results["fcfs"], results["fair"]
    bound = 2 * fair["alone"] + fair["step"]
    print(f"fair: p95 {fair['p95']:.0f} ms, at most {bound:.0f} = 2 · {fair['alone']:.0f} alone + {fair['step']:.0f}")
    print(f"fcfs: p95 {fcfs['p95']:.0f} ms, {fcfs['p95'] / fair['p95']:.0f} times as long (goal 10)")
    met = fair["p95"] <= bound and fcfs["p95"] >= 10 * fair["p95"]
    return {**results, "bound": bound, "ratio": fcfs["p95"] / fair["p95"], "met": met}


def _flooded(home: Path, policy: str, seconds: float) -> dict[str, Any]:
    with engine(home, policy) as one:
        each_second(10, lambda number: one.submit(f"alone{number}", SHORT, "light"))
        one.wait(lambda: not one.live)
        one.steps.clear()
        for number in range(FLOOD):
            one.submit(f"flood{number}", LONG, "heavy")
        each_second(seconds, lambda number: one.submit(f"light{number}", SHORT, "light"))
        beside = sum(id.startswith("flood") for id in one.live)
        steps = [step.total_ns / 1e6 for step in one.steps]
        one.wait(lambda: all(f"light{number}" in one.firsts for number in range(round(seconds))), 5 * seconds)
        waited = [1e3 * one.firsts.get(f"light{number}", 5 * seconds) for number in range(round(seconds))]
        alone = [1e3 * one.firsts[f"alone{number}"] for number in range(10)]
        one.empty()
    return {
        "alone": statistics.median(alone),
        "step": percentile(sorted(steps), 0.95),
        "step_p50": statistics.median(steps),
        "p50": statistics.median(waited),
        "p95": percentile(sorted(waited), 0.95),
        "max": max(waited),
        "requests": len(waited),
        "flood_left": beside,
        "waited": waited,
    }


# ------------------------------------------------------------ priority under overload


def priority(home: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds; the same arrivals under both policies, at 120 % of what the engine completes without a pause.

    The overload has lasted for a while: ordinary requests hold all slots to begin with, and as many wait.
    """
    rate = LOAD * _capacity(home, seconds / 2)
    results = {policy: _overloaded(home, policy, rate, seconds) for policy in ("fcfs", "priority")}
    ratio = results["fcfs"]["p99"] / results["priority"]["p99"]
    for policy, one in results.items():
        print(
            f"{policy}: important requests p50 {one['p50']:.0f} ms, p99 {one['p99']:.0f} ms; others {one['others']:.0f}"
        )
    print(f"{rate:.2f} requests/s; p99 {ratio:.0f} times better (goal 10)")
    return {**results, "rate": rate, "ratio": ratio, "met": ratio >= 10}


def _capacity(home: Path, seconds: float) -> float:
    """Requests a second, where as many as there are slots, and half as many again, are always there."""
    with engine(home, "fcfs") as one:
        made = itertools.count()
        began = ended = time.monotonic()
        while (ended := time.monotonic()) < began + seconds:
            while len(one.live) < 1.5 * one.slots:
                one.submit(f"r{next(made)}", ORDINARY)
            one.wait(lambda: len(one.live) < 1.5 * one.slots)
        tokens = sum(tokens for id, tokens, now in one.outputs if id[0] == "r" and now / 1e9 > began + seconds / 4)
        one.empty()
    return tokens / ORDINARY[1] / (ended - began - seconds / 4)


def _overloaded(home: Path, policy: str, rate: float, seconds: float) -> dict[str, Any]:
    draw, firsts = random.Random(1), dict[str, float]()
    with engine(home, policy) as one:
        for number in range(2 * one.slots):
            one.submit(f"before{number}", ORDINARY)
        at = began = time.monotonic()
        number = 0
        while (at := at + draw.expovariate(rate)) < began + seconds:
            time.sleep(max(0.0, at - time.monotonic()))
            important = number % IMPORTANT == 0
            one.submit(f"{'high' if important else 'low'}{number}", ORDINARY, nice=-10 if important else 0)
            number += 1
        backlog = len(one.live)
        one.wait(lambda: all(not id.startswith("high") or id in one.firsts for id in one.live), seconds)
        firsts = {id: 1e3 * first for id, first in one.firsts.items()}
        one.empty()
    high = sorted(first for id, first in firsts.items() if id.startswith("high"))
    low = [first for id, first in firsts.items() if id.startswith("low")]
    return {
        "requests": len(high),
        "p50": statistics.median(high),
        "p99": percentile(high, 0.99),
        "others": statistics.median(low),
        "backlog": backlog,
        "first_tokens": high,
    }


# ------------------------------------------------------------ shares of users


def shares(home: Path, seconds: float) -> dict[str, Any]:
    """Jain's index (Σx)²/(n·Σx²) of what equal users were charged in each window, at least one request of each waiting.

    A prompt is charged with its first token.
    """
    results = {policy: _shares(home, policy, seconds) for policy in ("fcfs", "fair")}
    for policy, one in results.items():
        print(f"{policy}: Jain's index {', '.join(f'{index:.4f}' for index in one['jain'])} (goal 0.98 under fair)")
    return {**results, "met": min(results["fair"]["jain"]) >= 0.98}


def _shares(home: Path, policy: str, seconds: float) -> dict[str, Any]:
    with engine(home, policy) as one:
        began = time.monotonic_ns()
        made = itertools.count()
        while time.monotonic_ns() < began + seconds * 1e9:  # the busiest asks first, and none is ever without work
            for user, shape in SHAPES.items():
                for _ in range(one.slots - sum(id[0] == user for id in one.live)):
                    one.submit(f"{user}{next(made)}", shape, user)
            time.sleep(0.1)
        charged, seen = list[tuple[str, int, int]](), set[str]()
        for id, tokens, now in one.outputs:
            if id[0] in SHAPES and now >= began:
                prompt = 0 if id in seen else SHAPES[id[0]][0]
                seen.add(id)
                charged.append((id[0], one.prices.cost(prompt, tokens), now - began))
        one.empty()
    windows = list[list[int]]()
    for start in range(0, round(seconds - WINDOW_S) + 1, 5):
        inside = [(who, cost) for who, cost, at in charged if start <= at / 1e9 < start + WINDOW_S]
        windows.append([sum(cost for who, cost in inside if who == user) for user in SHAPES])
    prices = {"prompt_ns": one.prices.prompt, "output_ns": one.prices.output}
    return {
        "prices": prices,
        "jain": [sum(w) ** 2 / (len(w) * sum(x * x for x in w)) for w in windows],
        "windows": windows,
    }


PARTS = {"flood": (flood, 40.0), "priority": (priority, 40.0), "shares": (shares, 45.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the installed model")
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    facts = machine_facts()
    measure, seconds = PARTS[args.part]
    result = measure(args.home, args.seconds or seconds)
    if args.json:
        args.json.write_text(json.dumps({"machine": asdict(facts), args.part: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
