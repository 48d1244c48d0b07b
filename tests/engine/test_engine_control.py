"""Control of requests on the real engine: the real model's steps go on while commands come in the middle of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from engine_world import TICKETS, Hooked, Listener

from llmosd.application.assembly import Assembly
from llmosd.application.engine import Command, Control, Submit, ThreadEngine
from llmosd.config import Config
from llmosd.runtime.installed import InstalledModel
from llmosd.system.control import Action, Kill, Nice, Resume, Selection, Suspend
from llmosd.system.executor import Executor
from llmosd.system.kernels import Kernels
from llmosd.types import Plan, RequestSpec, RequestView, Sampling, State

SLOTS = 2
PROMPT = [1, 4093, 198]  # any three tokens

pytestmark = pytest.mark.timeout(300)


@dataclass
class Room:
    """A running engine, the plans it executed, and what is to be done in the middle of a step, on its own thread."""

    listener: Listener
    engine: ThreadEngine
    model: str
    plans: list[Plan] = field(default_factory=list)
    scripts: list[Callable[[Plan], bool]] = field(default_factory=list)  # each until it returns True
    asked: threading.Event = field(default_factory=threading.Event)  # all that the test submits

    def before(self, plan: Plan) -> None:
        self.plans.append(plan)
        self.scripts[:] = [script for script in self.scripts if not script(plan)]

    def submit(self, id: str, tokens: int, user: str = "") -> None:
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
        self.post(Submit(next(TICKETS), RequestSpec(id, self.model, PROMPT, sampling, user=user)))

    def post(self, command: Command) -> Command:
        self.engine.post(command)
        return command

    def control(self, action: Action, *ids: str) -> Control:
        return Control(next(TICKETS), action, Selection(ids))

    def in_step(self, when: Callable[[Plan], bool], *commands: Command) -> Callable[[], int]:
        """Post them while the first step that `when` is true of computes; the answer says which plan that was."""
        found: list[int] = []

        def script(plan: Plan) -> bool:
            if not when(plan):
                return False
            found.append(len(self.plans) - 1)
            for command in commands:
                self.engine.post(command)
            return True

        self.scripts.append(script)
        return lambda: found[0]

    def views(self, command: Command) -> list[RequestView]:
        """The reply to a control command."""
        views = self.listener.reply(command)
        assert isinstance(views, tuple)
        return [view for view in views if isinstance(view, RequestView)]


@pytest.fixture
def room(model: InstalledModel, model_home: Path, listener: Listener) -> Iterator[Room]:
    config = Config(home=model_home, model=model.id, policy="priority", slots=SLOTS, threads=2, speculation=False)
    assembly = Assembly.draw(config, model, (), lambda stage, done, total: None)

    def build() -> tuple[Kernels, Executor]:
        kernels, executor = assembly()
        return kernels, Hooked(executor, room.before)

    room = Room(listener, ThreadEngine(build, listener), model.id)
    room.engine.start()
    yield room
    room.engine.stop(drain=False)
    assert room.engine.join(timeout=60)


def sequences(plan: Plan) -> int:
    return len(plan.sequences)


def test_kill_ends_a_request_before_the_next_step_and_its_pages_are_free(room: Room) -> None:
    kill = room.control(Kill("not needed"), "a")
    step = room.in_step(lambda plan: sequences(plan) == SLOTS and room.asked.is_set(), kill)
    for id in ("a", "b", "waits"):
        room.submit(id, 400)
    room.asked.set()
    [view] = room.views(kill)
    assert (view.id, view.state, view.pages) == ("a", State.CANCELLED, 0)
    [batch] = [batch for batch in room.listener.batches if any(r.ticket == kill.ticket for r in batch.replies)]
    assert batch.stats.running == 1 and batch.stats.pages_used == 1, "pages of the other one alone"
    [killed] = {part.sequence for part in room.plans[step()].sequences} & set(room.plans[step() + 1].ended)
    assert sequences(room.plans[step() + 1]) == SLOTS, "who waited has its place"
    assert all(killed not in {part.sequence for part in plan.sequences} for plan in room.plans[step() + 1 :])


def test_nice_decides_who_the_next_plan_takes_up(room: Room) -> None:
    nice, kill = room.control(Nice(-5), "second"), room.control(Kill("not needed"), "a")
    step = room.in_step(lambda plan: sequences(plan) == SLOTS and room.asked.is_set(), nice, kill)
    for id in ("a", "b", "first", "second"):
        room.submit(id, 400)
    room.asked.set()
    assert [view.nice for view in room.views(nice)] == [-5]
    room.listener.first_output("second")
    [started] = room.plans[step() + 1].started
    alone = room.views(room.post(room.control(Kill("enough"), "b", "second", "first")))
    generated = {view.id: view.completion_tokens for view in alone}
    assert generated["second"] > 0 == generated["first"]
    assert started.sequence in {part.sequence for part in room.plans[step() + 1].sequences}


def test_what_is_suspended_and_resumed_in_the_middle_of_a_step_loses_no_token(room: Room) -> None:
    room.submit("undisturbed", 60)
    assert room.listener.ended("undisturbed").state is State.FINISHED
    suspend, resume = room.control(Suspend(), "stopped"), room.control(Resume(), "stopped")
    seen = len(room.plans)
    room.in_step(lambda _plan: len(room.plans) == seen + 20, suspend)
    room.submit("stopped", 60)
    [view] = room.views(suspend)
    assert view.state is State.SUSPENDED and view.pages == 0 and 0 < view.completion_tokens < 60
    executed = len(room.plans)
    assert len(room.listener.tokens("stopped")) == view.completion_tokens, "all that was computed is out"
    room.post(resume)
    ended = room.listener.ended("stopped")
    assert (ended.state, ended.completion_tokens) == (State.FINISHED, 60)
    assert room.listener.tokens("stopped") == room.listener.tokens("undisturbed")
    assert len(room.plans) > executed
