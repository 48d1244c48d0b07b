"""How soon a command takes effect: kill, nice, suspend and resume on the busy engine, at moments that nobody chose.

All slots decode, and prompts of a thousand tokens come in between, so that steps are as long as they get. A command's
effect is there when its reply is: pages free, nice value changed. What counts is how much later that is than the end of
the step that computed when the command was sent.

python bench/control.py [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import threading
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from facts import machine_facts

from llmosd.application.assembly import Assembly
from llmosd.application.engine import Batch, Control, Submit, ThreadEngine
from llmosd.config import Config, default_home
from llmosd.runtime.installed import find
from llmosd.system.control import Action, Kill, Nice, Resume, Selection, Suspend
from llmosd.types import Ended, RequestSpec, RequestView, Sampling, State

MODEL, SLOTS, LONG_PROMPT, ANSWER = "smollm2-135m-instruct", 16, 1000, 900
COMMANDS: dict[str, Action] = {"kill": Kill("not needed"), "nice": Nice(5), "suspend": Suspend(), "resume": Resume()}


@dataclass(frozen=True, slots=True)
class Delay:
    """Milliseconds, over `count` commands."""

    command: str
    count: int
    step_p50: float  # the step that computed when it was sent
    step_max: float
    effect_p50: float  # from sending to the reply
    effect_max: float
    beyond_p50: float  # of it, after the end of that step
    beyond_max: float


class Listener:
    """Takes batches on the engine's thread."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []  # began, ended
        self.live: set[str] = set()
        self.replied: dict[int, int] = {}
        self.news = threading.Condition()

    def __call__(self, batch: Batch) -> None:
        now = time.monotonic_ns()
        with self.news:
            if step := batch.step:
                self.steps.append((step.now - step.execute_ns - step.plan_ns, step.now + step.commit_ns))
            self.live -= {event.request.id for event in batch.events if isinstance(event, Ended)}
            for reply in batch.replies:
                self.replied[reply.ticket] = now
                if isinstance(reply.value, RequestView):
                    self.live.add(reply.value.id)
                elif isinstance(reply.value, tuple):
                    assert all(view.pages == 0 for view in reply.value if view.state is State.CANCELLED)
            self.news.notify_all()


class Load:
    def __init__(self, home: Path) -> None:
        config = Config(home=home, model=MODEL, slots=SLOTS)
        self.listener, self.random = Listener(), random.Random(1)
        assembly = Assembly.draw(config, find(home, MODEL), (), lambda stage, done, total: None)
        self.engine = ThreadEngine(assembly, self.listener)
        self.engine.start()
        self._tickets = itertools.count(1)

    def submit(self, prompt: int) -> None:
        ticket = next(self._tickets)
        tokens = [self.random.randrange(1000, 40000) for _ in range(prompt)]
        sampling = Sampling(max_tokens=ANSWER, temperature=0, ignore_eos=True)
        spec = RequestSpec(f"r{ticket}", MODEL, tokens, sampling, arrived=time.monotonic_ns())
        self.engine.post(Submit(ticket, spec))
        self._reply(ticket)

    def send(self, action: Action, id: str) -> tuple[int, int]:
        """(sent, replied)"""
        ticket, sent = next(self._tickets), time.monotonic_ns()
        self.engine.post(Control(ticket, action, Selection((id,))))
        return sent, self._reply(ticket)

    def _reply(self, ticket: int) -> int:
        with self.listener.news:
            self.listener.news.wait_for(lambda: ticket in self.listener.replied)
            return self.listener.replied[ticket]

    def fill(self) -> None:
        while len(self.listener.live) < SLOTS - 1:
            self.submit(20)
        self.submit(LONG_PROMPT)


def measure(load: Load, count: int) -> list[Delay]:
    sent: dict[str, list[tuple[int, int]]] = {name: [] for name in COMMANDS}
    for _ in range(count):
        load.fill()
        id = load.random.choice(sorted(load.listener.live))
        for name in ("nice", "suspend", "resume", "kill"):
            time.sleep(load.random.uniform(0.01, 0.06))
            if id in load.listener.live:
                sent[name].append(load.send(COMMANDS[name], id))
    time.sleep(1)  # the last steps are told
    return [delay(name, times, load.listener.steps) for name, times in sent.items()]


def delay(name: str, times: list[tuple[int, int]], steps: list[tuple[int, int]]) -> Delay:
    effects, lengths, beyond = [], [], []
    for sent, replied in times:
        step = next(((began, ended) for began, ended in steps if began <= sent <= ended), None)
        effects.append((replied - sent) / 1e6)
        if step is not None:
            lengths.append((step[1] - step[0]) / 1e6)
            beyond.append((replied - step[1]) / 1e6)
    middle = statistics.median
    return Delay(
        name, len(times), middle(lengths), max(lengths), middle(effects), max(effects), middle(beyond), max(beyond)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="commands of each kind")
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    facts, load = machine_facts(), Load(args.home)
    delays = measure(load, args.count)
    load.engine.stop(drain=False)
    load.engine.join()
    names = ("step p50", "max", "effect p50", "max", "beyond p50", "max")
    print(f"{'ms':8} {'count':>6}" + "".join(f"{name:>12}" for name in names))
    for command, count, *numbers in map(astuple, delays):
        print(f"{command:8} {count:6}" + "".join(f"{number:12.2f}" for number in numbers))
    if args.json:
        args.json.write_text(
            json.dumps({"facts": asdict(facts), "delays": [asdict(d) for d in delays]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
