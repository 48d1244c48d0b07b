"""Any order of operations on pages: after each, every invariant holds and every row reads its own history."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.system.memory_world import SALTS
from tests.system.swap_world import SwapWorld

PLACES = st.integers(0, 9)
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)  # few tokens: beginnings meet often


class MemoryMachine(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(1, 16),
        rows=st.integers(1, 5),
        columns=st.integers(1, 8),
        size=st.integers(1, 4),
        slots=st.integers(0, 16),
    )
    def boot(self, pages: int, rows: int, columns: int, size: int, slots: int) -> None:
        self.world = SwapWorld(pages, rows, columns, size, slots)

    @rule(salt=st.sampled_from(SALTS), tokens=TOKENS)
    def begin(self, salt: str, tokens: list[int]) -> None:
        self.world.begin(salt, tokens)

    @rule(place=PLACES, tokens=TOKENS)
    def append(self, place: int, tokens: list[int]) -> None:
        self.world.append(place, tokens)

    @rule(place=PLACES)
    def fork(self, place: int) -> None:
        self.world.fork(place)

    @rule(place=PLACES, remember=st.booleans())
    def end(self, place: int, remember: bool) -> None:
        self.world.end(place, remember)

    @rule()
    def evict(self) -> None:
        self.world.evict()

    @rule(pages=st.integers(1, 4))
    def promise(self, pages: int) -> None:
        self.world.promise(pages)

    @rule(place=PLACES)
    def give_up(self, place: int) -> None:
        self.world.give_up(place)

    @rule(place=PLACES)
    def swap_out(self, place: int) -> None:
        self.world.swap_out(place)

    @rule(place=PLACES)
    def swap_in(self, place: int) -> None:
        self.world.swap_in(place)

    @rule()
    def set_off(self) -> None:
        self.world.set_off()

    @rule(place=PLACES, fault=st.sampled_from([False, False, False, True]))
    def arrive(self, place: int, fault: bool) -> None:
        self.world.arrive(place, fault)

    @rule(place=PLACES)
    def forget(self, place: int) -> None:
        self.world.forget(place)

    @rule(pages=st.integers(0, 16))
    def resize(self, pages: int) -> None:
        self.world.resize(pages)

    @rule()
    def crash(self) -> None:
        self.world.crash()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            event(f"copies: {min(self.world.copied, 5)}")
            event(f"moved: {min(self.world.moved, 5)}")
            event(f"swapped in again: {min(self.world.back, 5)}")


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

OPERATIONS = 12_500  # by each of eight worlds: 10⁵ in all


@pytest.mark.parametrize("seed", range(8))
def test_a_hundred_thousand_operations(seed: int) -> None:
    random = Random(seed)
    size, pages = 2 + seed % 4, 60 // (2 + seed % 4)
    world = SwapWorld(pages, rows=8, columns=32 // size, size=size, slots=40 // size)

    def tokens(most: int) -> list[int]:
        return [random.randint(0, 2) for _ in range(random.randint(1, most))]

    place = random.randrange
    operations = {
        lambda: world.append(place(99), tokens(5)): 40,
        lambda: world.begin(random.choice(SALTS), tokens(14)): 25,
        lambda: world.end(place(99), random.random() < 0.7): 20,
        lambda: world.fork(place(99)): 8,
        lambda: world.promise(random.randint(1, 3)): 3,
        lambda: world.give_up(place(99)): 3,
        lambda: world.evict(): 0.5,
        lambda: world.swap_out(place(99)): 10,
        lambda: world.swap_in(place(99)): 12,
        lambda: world.set_off(): 12,
        lambda: world.arrive(place(99), random.random() < 0.05): 50,
        lambda: world.forget(place(99)): 1,
        lambda: world.resize(random.randint(pages // 3, pages + pages // 3)): 3,
        lambda: world.crash(): 0.1,
    }
    choices, weights = list(operations), list(operations.values())
    done = 0
    while done < OPERATIONS:
        [operation] = random.choices(choices, weights)
        done += operation()
        world.check()
    counts = (world.copied, world.moved, world.evicted, world.back, world.faults)
    assert min(counts) > 50, f"the operations do not test what they are meant to: {counts}"
    world.drain()
