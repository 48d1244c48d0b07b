"""Batches reach the event loop's side in order and complete, while the next step computes; run on the test's thread."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from engine_world import TICKETS, cancel, make_executor, make_kernel, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.application.engine import Batch, Control, Inspect, Submit
from llmosd.application.engine_loop import Inbox, Loop, Stop
from llmosd.errors import StepError
from llmosd.system.executor import nothing
from llmosd.system.kernels import Kernels
from llmosd.types import Accepted, Ended, Event, Output, Plan, RequestView, State, StepResult

EARLY, LATE, DEFECT = "fails before it computes", "fails after it computed", "dies"


Message = Submit | Control | Inspect | Stop


class Unattended(Inbox):
    """Who waits for a message here is told to stop; `at_rest` runs before."""

    def __init__(self, at_rest: Callable[[], None]) -> None:
        super().__init__()
        self._at_rest = at_rest

    def take(self, wait: bool, at_most_s: float | None = None) -> list[Message]:
        if messages := super().take(wait=False):
            return messages
        if not wait:
            return []
        self._at_rest()
        return [Stop(drain=True)]


@dataclass
class World:
    """A loop whose executor posts a command, or fails, at chosen executions (counted from 0)."""

    posts: dict[int, list[Message]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)  # batches delivered when an execution began to compute
    before: list[int] = field(default_factory=list)  # … and when it was entered
    at_rest: list[Batch] = field(default_factory=list)  # what was out when the loop waited for a command
    executions: int = 0

    def __post_init__(self) -> None:
        self.inbox = Unattended(lambda: self.at_rest.extend(self.batches))
        self._inner = make_executor()
        self._time = itertools.count()

    def run(self, commands: Iterable[Message]) -> None:
        for command in commands:
            self.inbox.put(command)
        Loop(Kernels(make_kernel()), self, self.inbox, self.batches.append, lambda: next(self._time)).run()

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        number, self.executions = self.executions, self.executions + 1
        self.before.append(len(self.batches))
        for message in self.posts.get(number, ()):
            self.inbox.put(message)
        fault = self.faults.get(number)
        if fault == EARLY:
            raise StepError(fault)
        result = self._inner.execute(plan, meanwhile)
        self.seen.append(len(self.batches))
        if fault == LATE:
            raise StepError(fault)
        if fault == DEFECT:
            raise ZeroDivisionError(fault)
        return result

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]


def submits(count: int, max_tokens: int = 6) -> list[Submit]:
    return [Submit(next(TICKETS), spec(f"r{i}", max_tokens=max_tokens, prompt=10)) for i in range(count)]


def test_a_step_is_handed_over_when_the_next_one_computes() -> None:
    """One request of 6 tokens in 6 steps: each step finds its predecessor's batch held, and computes after it."""
    world = World(posts={5: [Stop(drain=True)]})
    world.run(submits(1))
    assert world.before == [1, 1, 2, 3, 4, 5]  # the reply is there before the first step
    assert world.seen == [1, 2, 3, 4, 5, 6]
    assert [batch.step.step if batch.step else None for batch in world.batches] == [None, 0, 1, 2, 3, 4, 5]


def test_a_reply_does_not_wait_for_the_next_step() -> None:
    """It goes out between two steps, behind what the earlier of them gave."""
    inspect = Inspect(next(TICKETS))
    world = World(posts={2: [inspect], 5: [Stop(drain=True)]})
    world.run(submits(1))
    (place,) = [i for i, batch in enumerate(world.batches) if any(r.ticket == inspect.ticket for r in batch.replies)]
    step = world.batches[place - 1].step
    assert step is not None and step.step == 2
    assert world.before[3] == place + 1


def test_nothing_is_held_once_the_engine_is_idle() -> None:
    """The loop waits for a command without another step; the last request's end is out by then."""
    world = World()
    world.run(submits(1))
    assert world.executions == 6
    assert isinstance(world.at_rest[-1].events[-1], Ended)


faults = st.dictionaries(st.integers(0, 40), st.sampled_from([EARLY, LATE, DEFECT]), max_size=5)
posts = st.dictionaries(
    st.integers(0, 40),
    st.lists(
        st.one_of(
            st.builds(lambda size: Submit(ticket := next(TICKETS), spec(f"late-{ticket}", size)), st.integers(1, 30)),
            st.builds(lambda: cancel("r0")),
            st.builds(lambda: Inspect(next(TICKETS))),
            st.builds(Stop, st.booleans()),
        ),
        max_size=3,
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), posts, faults)
def test_whatever_happens_batches_are_in_order_and_nothing_is_lost(
    count: int, posts: dict[int, list[Message]], faults: dict[int, str]
) -> None:
    world = World(posts, faults)
    with suppress(ZeroDivisionError):
        world.run(submits(count))
    check_order(world.batches)
    check_lives(world.events)
    answered = Counter(reply.ticket for batch in world.batches for reply in batch.replies)
    assert len(answered) >= count and set(answered.values()) == {1}


def check_order(batches: list[Batch]) -> None:
    steps = [batch.step for batch in batches if batch.step]
    assert [step.step for step in steps] == sorted({step.step for step in steps})
    totals = [(batch.stats.accepted, batch.stats.generated_tokens) for batch in batches]
    assert totals == sorted(totals)


def check_lives(events: list[Event]) -> None:
    """Each request is accepted, has its tokens 0, 1, 2, … and ends, in this order; nobody is left without an end."""
    tokens: dict[str, int] = {}
    ends: dict[str, RequestView] = {}
    for event in events:
        if isinstance(event, Accepted):
            tokens[event.request.id] = 0
        elif isinstance(event, Output) and event.tokens:
            assert event.tokens == (tokens[event.id],) and event.id not in ends
            tokens[event.id] += 1
        elif isinstance(event, Ended):
            assert event.request.id not in ends
            ends[event.request.id] = event.request
    assert set(ends) == set(tokens)
    for id, view in ends.items():
        assert view.completion_tokens == tokens[id]
        assert view.state is not State.FINISHED or tokens[id] == view.max_tokens
