"""A request whose client reads too slowly: it stands still, in nobody's way, and goes on where it was."""

from __future__ import annotations

import pytest

from llmosd.errors import NotFound
from llmosd.types import State
from tests.system.world import World, make_limits


def test_a_paused_request_leaves_its_slot_and_pages_to_others() -> None:
    world = World(make_limits(slots=1, pages=4), prefixes=True)
    slow, other = world.submit(8, 8), world.submit(8, 8)
    for _ in range(3):
        world.step()
    assert (world.state(slow), world.state(other)) == (State.DECODE, State.QUEUED)
    world.pause(slow)
    while world.oracle.runnable:
        world.step()
    assert world.state(other) is State.FINISHED
    assert world.kernel.idle, "a paused request is no reason to step"
    world.unpause(slow)
    world.drain()
    assert world.state(slow) is State.FINISHED


def test_who_goes_on_soon_computes_nothing_twice() -> None:
    world = World(prefixes=True)
    slow = world.submit(10, 8)
    for _ in range(4):
        world.step()
    world.pause(slow)
    computed = world.kernel.stats(False).prompt_tokens
    world.unpause(slow)
    world.step()
    assert world.kernel.stats(False).prompt_tokens - computed == 1, "the token that was sampled last is always fed"
    world.drain()


def test_its_time_is_no_part_of_any_other_state() -> None:
    world = World(prefixes=True)
    slow = world.submit(4, 4)
    world.step()
    world.step()
    world.pause(slow)
    before = world.kernel.view(slow).times
    world.now += 1000
    world.unpause(slow)
    after = world.kernel.view(slow).times
    assert after.total - before.total == after.other - before.other == 1000
    world.drain()


def test_a_person_may_suspend_and_resume_who_is_paused() -> None:
    world = World(prefixes=True)
    slow = world.submit(4, 4)
    world.step()
    world.step()
    world.pause(slow)
    world.suspend(slow)
    world.unpause(slow)  # its client reads, and still it waits for the person
    assert world.state(slow) is State.SUSPENDED
    world.resume(slow)
    world.drain()


def test_who_has_not_begun_is_not_paused() -> None:
    world = World()
    id = world.submit(4, 4)
    world.pause(id)
    assert world.state(id) is State.QUEUED
    world.drain()
    for act in (world.kernel.pause, world.kernel.unpause):
        with pytest.raises(NotFound):
            act(id, world.now)
