"""One step serves one model; those that have work share the time by urgency, then evenly."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from llmosd.system.turns import Turns, Urgency


def equal(model: str) -> Urgency:
    return ()


@given(st.integers(0, 1000))
def test_models_with_work_share_the_time(seed: int) -> None:
    """Between any two that have work all along the time served differs by at most one step, however long steps are."""
    random, turns, served = Random(seed), Turns(), Counter[str]()
    for _ in range(200):
        model = turns.next("abc", equal)
        took = random.randint(0, 100)
        turns.charge(model, took)
        served[model] += took
        assert max(served.values()) - min(served[name] for name in "abc") <= 200


def test_steps_without_duration_alternate() -> None:
    turns = Turns()
    order = []
    for _ in range(6):
        order.append(turns.next("ab", equal))
        turns.charge(order[-1], 0)
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_the_more_urgent_goes_first() -> None:
    turns = Turns()
    for _ in range(3):
        assert turns.next("ab", {"a": (0,), "b": (-5,)}.__getitem__) == "b"
        turns.charge("b", 1000)
    assert turns.next("a", equal) == "a"


def test_time_without_work_is_not_saved_up() -> None:
    turns = Turns()
    for _ in range(100):
        turns.charge(turns.next("a", equal), 10)
    order = []
    for _ in range(4):
        order.append(turns.next("ab", equal))
        turns.charge(order[-1], 10)
    assert sorted(order) == ["a", "a", "b", "b"]


def test_nor_by_one_that_comes_back() -> None:
    turns = Turns()
    turns.charge(turns.next("a", equal), 10)
    for _ in range(100):
        turns.charge(turns.next("b", equal), 10)
    order = []
    for _ in range(4):
        order.append(turns.next("ab", equal))
        turns.charge(order[-1], 10)
    assert sorted(order) == ["a", "a", "b", "b"]
