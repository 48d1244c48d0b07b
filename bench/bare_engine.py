"""The engine as the daemon builds it, without HTTP, bus and database: reads rounds of requests from standard input.

A line in is a JSON list of bodies as /v1/completions takes them, with token ids as prompts; a line out says how long
they took together, the process's CPU time, and what steps that decode in all slots took outside ONNX Runtime.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmosd.application.assembly import Assembly
from llmosd.application.engine import Batch, Submit, ThreadEngine
from llmosd.application.http.schema import completion_body
from llmosd.config import Config
from llmosd.runtime.installed import find
from llmosd.types import Ended, RequestSpec, StepStats


class Listener:
    """Takes batches on the engine's thread."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.over = threading.Event()
        self._left = 0

    def expect(self, requests: int) -> None:
        self.steps, self._left = [], requests
        self.over.clear()

    def __call__(self, batch: Batch) -> None:
        if batch.step:
            self.steps.append(batch.step)
        self._left -= sum(isinstance(event, Ended) for event in batch.events)
        if self._left == 0:
            self.over.set()


def submits(bodies: list[dict[str, Any]], ticket: int) -> list[Submit]:
    now = time.monotonic_ns()
    return [
        Submit(
            ticket + i,
            RequestSpec(
                f"r{ticket + i}",
                body["model"],
                body["prompt"],
                completion_body(json.dumps(body).encode()).sampling(),
                arrived=now,
            ),
        )
        for i, body in enumerate(bodies)
    ]


def answer(
    engine: ThreadEngine, listener: Listener, bodies: list[dict[str, Any]], ticket: int, slots: int
) -> dict[str, float]:
    listener.expect(len(bodies))
    commands = submits(bodies, ticket)
    began, cpu = time.perf_counter(), time.process_time()
    for command in commands:
        engine.post(command)
    listener.over.wait()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    steps = [step for step in listener.steps if step.sequences == slots and not step.prefill_tokens]
    run, whole = sum(step.run_ns for step in steps), sum(step.total_ns for step in steps)
    outside = {"overhead": 1 - run / whole, "overhead_us": (whole - run) / len(steps) / 1e3}
    return {"seconds": seconds, "cpu": cpu, "step_ms": whole / len(steps) / 1e6} | outside


def main() -> None:
    home, model, spin, slots = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", int(sys.argv[4])
    config = Config(home=home, model=model, spin=spin, slots=slots)
    plan = Assembly.draw(config, find(home, model), (), lambda stage, done, total: None)
    listener = Listener()
    engine = ThreadEngine(plan, listener)
    engine.start()
    gc.collect()
    gc.freeze()
    print(json.dumps({}), flush=True)
    ticket = 1
    for line in sys.stdin:
        bodies = json.loads(line)
        print(json.dumps(answer(engine, listener, bodies, ticket, slots)), flush=True)
        ticket += len(bodies)


if __name__ == "__main__":
    main()
