"""Deadlines and the time in the queue: who is out of time fails, at once and with all it held; nobody else does."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from llmosd.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, QueueFull
from llmosd.system.deadlines import Deadlines
from llmosd.types import Ended, RequestSpec, Sampling, State
from tests.system.test_request import make_request
from tests.system.world import World, make_limits


def final(world: World, id: str) -> tuple[State, str | None]:
    view = world.oracle.lives[id].final
    assert view is not None
    return view.state, view.error


@pytest.mark.parametrize("state", [State.QUEUED, State.PREFILL, State.DECODE, State.SUSPENDED])
def test_a_deadline_ends_a_request_in_any_state(state: State) -> None:
    world = World(make_limits(slots=1, token_budget=2))
    if state is State.QUEUED:
        world.submit(4, 40)
    id = world.submit(5, 40, deadline=100)
    world.step(10)
    while state is State.DECODE and world.state(id) is not State.DECODE:
        world.step(5)
    if state is State.SUSPENDED:
        world.suspend(id)
    assert world.state(id) is state
    world.wait(99 - world.now)
    assert not world.expire()
    world.wait(1)
    *_, ended = world.expire()
    assert isinstance(ended, Ended) and (ended.timeout, ended.interrupted) == ("deadline", False)
    assert final(world, id) == (State.FAILED, "its deadline passed, 0.000 s after it came")
    assert world.kernel.next_deadline is None
    world.drain()


def test_a_deadline_in_the_past_is_refused_and_says_whose_fault_it_is() -> None:
    kernel = World().kernel
    for arrived, error in ((10, InvalidRequest), (5, DeadlineExceeded)):
        spec = RequestSpec("x", "m", [1], Sampling(), arrived=arrived, deadline=10)
        with pytest.raises(error, match="deadline") as refused:
            kernel.submit(spec, 20)
        assert refused.value.param == "deadline_ms"
    assert kernel.stats(False).accepted == 0


def test_a_deadline_outlives_a_restart() -> None:
    world = World()
    world.submit(4, 40, deadline=1000)
    world.step(10)
    world.restart(down=300, starts_at=7)
    assert world.kernel.next_deadline == 7 + 1000 - 300 - 10


def test_who_is_not_admitted_in_time_is_given_up_and_who_was_is_not() -> None:
    world = World(make_limits(slots=1, queue_timeout=50))
    first, second, third = (world.submit(3, 30) for _ in range(3))
    world.suspend(third)
    world.step(20)
    world.suspend(first)
    world.step(20)  # the second one is admitted
    world.resume(first)
    fourth = world.submit(3, 30)
    for _ in range(7):
        world.step(9)
    assert final(world, fourth)[0] is State.FAILED
    assert "not admitted in time" in (final(world, fourth)[1] or "")
    world.drain()
    assert [final(world, id)[0] for id in (first, second, third)] == [State.FINISHED] * 3


@pytest.mark.parametrize("seed", range(4))
def test_against_a_scan(seed: int) -> None:
    """At each step exactly those are given up that a look at every request would give up."""
    random = Random(seed)
    world = World(make_limits(slots=3, pages=20, queue_timeout=400), "priority")
    given_up, judged = 0, set[str]()
    for _ in range(300):
        if random.random() < 0.4:
            deadline = world.now + random.randint(1, 2000) if random.random() < 0.5 else None
            with suppress(ContextTooLong, QueueFull):
                world.submit(random.randint(1, 9), random.randint(2, 20), deadline=deadline, nice=random.randint(-5, 5))
        if random.random() < 0.1 and (live := world.oracle.live):
            random.choice((world.suspend, world.resume, world.cancel))(random.choice(live))
        late = set()
        for request in world.kernel._requests.values():
            if request.id not in judged and request.spec.arrived + 400 <= world.now:
                judged.add(request.id)
                late |= {request.id} if request.state is State.QUEUED else set()
            late |= {request.id} if (request.spec.deadline or 10**18) <= world.now else set()
        assert {event.request.id for event in world.expire() if isinstance(event, Ended)} == late
        given_up += len(late)
        world.step(random.randint(0, 100))
    world.drain()
    assert given_up > 10
    assert len(world.kernel._deadlines) < 200


def test_what_has_ended_is_not_kept() -> None:
    deadlines = Deadlines()
    for number in range(1000):
        request = make_request(now=number)
        request.number = number
        deadlines.add(10**9 + number, "deadline", request)
        if number >= 10:
            request.enter(State.CANCELLED, number)
    assert len(deadlines) < 200
    assert deadlines.next == 10**9
    assert len(list(deadlines.due(2 * 10**9))) == 10
