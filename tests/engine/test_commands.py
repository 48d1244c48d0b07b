"""What holds for any engine, seen through commands and batches."""

from __future__ import annotations

from collections.abc import Callable

import engine_world as world
import pytest
from engine_world import TICKETS, Listener, spec

from llmosd.application.engine import Build, Control, Engine, Hibernate, Inspect, Restore, Submit
from llmosd.errors import ContextTooLong, InvalidRequest, ModelError, NotFound, Unavailable
from llmosd.system.control import Nice, Resume, Selection
from llmosd.types import Ended, KernelStats, RequestView, State, StateChanged

Launch = Callable[[Build], Engine]


def test_a_request_runs_to_its_end(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build)
    submit = Submit(next(TICKETS), spec("a", max_tokens=7))
    engine.post(submit)
    view = listener.reply(submit)
    assert isinstance(view, RequestView)
    assert (view.id, view.state, view.max_tokens) == ("a", State.QUEUED, 7)
    ended = listener.ended("a")
    assert (ended.state, ended.completion_tokens, ended.finish) == (State.FINISHED, 7, "length")
    assert listener.tokens("a") == list(range(7))
    assert listener.batches[-1].stats.pages_used == 0


def test_steps_are_measured(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build)
    engine.post(Submit(next(TICKETS), spec("a", prompt=20, max_tokens=3)))
    listener.ended("a")
    steps = [batch.step for batch in listener.batches if batch.step]
    assert [(s.prefill_tokens, s.decode_tokens, s.context_tokens) for s in steps] == [
        (16, 0, 0),
        (4, 0, 16),
        (0, 1, 20),
        (0, 1, 21),
    ]
    assert all(s.plan_ns >= 0 and s.execute_ns >= 0 and s.commit_ns >= 0 for s in steps)
    assert [s.step for s in steps] == [0, 1, 2, 3]


def test_errors_come_back_as_replies(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build)
    commands = [
        (Submit(next(TICKETS), spec("big", prompt=900, max_tokens=900)), ContextTooLong),
        (Submit(next(TICKETS), spec("empty", prompt=[])), InvalidRequest),
        (world.cancel("nobody"), NotFound),
        (Control(next(TICKETS), Nice(3), Selection(("nobody",))), NotFound),
    ]
    for command, _ in commands:
        engine.post(command)
    for command, expected in commands:
        error = listener.reply(command)
        assert type(error) is expected
        assert error.message
    assert not listener.events


def test_cancel_renice_and_inspect_act_on_running_requests(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build_paced)
    for id in "ab":
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=900)))
        listener.first_output(id)
    renice, inspect = Control(next(TICKETS), Nice(-5), Selection(("b",))), Inspect(next(TICKETS))
    engine.post(renice)
    engine.post(inspect)
    views, stats = listener.reply(renice), listener.reply(inspect)
    assert isinstance(views, tuple) and [(view.id, view.nice) for view in views] == [("b", -5)]
    assert isinstance(stats, KernelStats)
    assert {r.id: r.nice for r in stats.requests} == {"a": 0, "b": -5}
    engine.post(cancel := world.cancel("a"))
    assert listener.reply(cancel) == (listener.ended("a"),)
    assert listener.ended("a").state is State.CANCELLED
    again = Inspect(next(TICKETS))
    engine.post(again)
    last = listener.reply(again)
    assert isinstance(last, KernelStats)
    assert [r.id for r in last.requests] == ["b"]


def test_what_one_engine_takes_down_another_takes_up(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build_paced)
    for id in "ab":
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=200)))
        listener.first_output(id)
    unknown = Hibernate(next(TICKETS), ("a", "nobody"))
    engine.post(unknown)
    assert isinstance(listener.reply(unknown), NotFound)
    assert not any(isinstance(event, StateChanged) and event.new is State.SUSPENDED for event in listener.events)
    every = Hibernate(next(TICKETS), None)
    engine.post(every)
    snapshots = listener.reply(every)
    assert isinstance(snapshots, tuple) and [snapshot.id for snapshot in snapshots] == ["a", "b"]
    engine.stop(drain=False)
    assert engine.join(timeout=60)
    assert all(event.interrupted for event in listener.events if isinstance(event, Ended))

    another = launch(world.build)
    for snapshot in snapshots:
        another.post(restore := Restore(next(TICKETS), snapshot, arrived=-snapshot.age))
        view = listener.reply(restore)
        assert isinstance(view, RequestView) and view.state is State.SUSPENDED
    another.post(again := Restore(next(TICKETS), snapshots[0], arrived=0))
    assert isinstance(listener.reply(again), InvalidRequest)
    listener.batches.clear()
    for id, snapshot in zip("ab", snapshots, strict=True):
        another.post(Control(next(TICKETS), Resume(), Selection((id,))))
        assert listener.ended(id).completion_tokens == 200
        assert [*snapshot.branches[0].tokens, *listener.tokens(id)] == list(range(200))


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build_paced)
    for id in "abcdef":  # four slots: two of them wait
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=10)))
    listener.first_output("a")
    engine.stop(drain=True)
    late = Submit(next(TICKETS), spec("late"))
    engine.post(late)
    assert isinstance(listener.reply(late), Unavailable)
    assert engine.join(timeout=60)
    assert [listener.ended(id).completion_tokens for id in "abcdef"] == [10] * 6
    assert engine.failure is None
    engine.post(too_late := Inspect(next(TICKETS)))
    assert isinstance(listener.reply(too_late), Unavailable)


def test_stop_without_drain_fails_what_is_live(launch: Launch, listener: Listener) -> None:
    engine = launch(world.build_paced)
    for id in "abcdef":
        engine.post(Submit(next(TICKETS), spec(id, max_tokens=900)))
    listener.first_output("a")
    engine.stop(drain=True)
    engine.stop(drain=False)
    assert engine.join(timeout=60)
    for id in "abcdef":
        assert listener.ended(id).state is State.FAILED
        assert "stopped" in str(listener.ended(id).error)


def test_what_building_raises_is_raised_by_start(launch: Launch, listener: Listener) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        launch(world.build_nothing)
