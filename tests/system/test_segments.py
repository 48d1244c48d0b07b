"""Any order of placing, growing, shrinking and releasing: segments never overlap, and what fits in sum is placed."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmosd.system.segments import SegmentTable
from llmosd.types import SegmentKind

KINDS: tuple[SegmentKind, ...] = ("weights", "workspace", "pool")


class SegmentMachine(RuleBasedStateMachine):
    """Beside a model that knows sizes only."""

    @initialize(budget=st.integers(1, 200))
    def boot(self, budget: int) -> None:
        self.table = SegmentTable(budget)
        self.sizes: dict[tuple[str, SegmentKind], int] = {}

    @rule(owner=st.sampled_from("abc"), kind=st.sampled_from(KINDS), share=st.floats(0, 1))
    def resize(self, owner: str, kind: SegmentKind, share: float) -> None:
        size = int(share * (self.table.free + self.table.size(owner, kind)))
        self.table.resize(owner, kind, size)
        self.sizes[owner, kind] = size

    @rule(owner=st.sampled_from("abc"), kind=st.sampled_from(KINDS))
    def take_all(self, owner: str, kind: SegmentKind) -> None:
        self.resize(owner, kind, 1.0)
        assert self.table.free == 0
        assert self.table.fragmentation == 0

    @rule(owner=st.sampled_from("abc"))
    def release(self, owner: str) -> None:
        self.table.release(owner)
        self.sizes = {name: size for name, size in self.sizes.items() if name[0] != owner}

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check()
        assert self.table.used == sum(self.sizes.values())
        assert {(s.owner, s.kind): s.size for s in self.table.segments} == {n: s for n, s in self.sizes.items() if s}
        assert 0 <= self.table.fragmentation < 1
        assert (self.table.largest_hole > 0) == (self.table.free > 0)


TestSegments = SegmentMachine.TestCase


def places(table: SegmentTable) -> list[tuple[str, int, int]]:
    return [(segment.owner, segment.offset, segment.size) for segment in table.segments]


def test_a_segment_goes_to_the_smallest_hole_it_fits() -> None:
    table = SegmentTable(100)
    for owner, size in (("a", 30), ("b", 5), ("c", 10), ("d", 20)):
        table.resize(owner, "pool", size)
    table.release("a")
    table.release("c")
    assert (table.free, table.largest_hole) == (75, 35)
    assert table.fragmentation == pytest.approx(1 - 35 / 75)
    table.resize("e", "pool", 10)
    assert places(table) == [("b", 30, 5), ("e", 35, 10), ("d", 45, 20)]
    assert table.moves == 0


def test_it_grows_where_it_is_or_moves_or_all_close_ranks() -> None:
    table = SegmentTable(100)
    for owner in "abc":
        table.resize(owner, "pool", 20)
    table.resize("c", "pool", 30)
    assert (places(table)[-1], table.moves) == (("c", 40, 30), 0)
    table.resize("a", "pool", 25)
    assert (places(table)[-1], table.moves) == (("a", 70, 25), 1)
    table.resize("b", "pool", 45)
    assert places(table) == [("c", 0, 30), ("a", 30, 25), ("b", 55, 45)]
    table.check()


def test_more_than_is_free_is_a_defect() -> None:
    table = SegmentTable(10)
    with pytest.raises(AssertionError, match="do not fit"):
        table.resize("a", "weights", 11)
