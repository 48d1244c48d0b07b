"""The segment table: what of the memory budget belongs to whom, and where it lies.

The budget is an address space of its own. Segments are what a program's are to an operating system: each of its own
size, placed in the smallest hole it fits, grown, shrunk and given back. Nothing is refused while enough is free in
sum: real addresses do not change when a segment moves here, so it costs nothing to close the holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from llmosd.types import Segment, SegmentKind


class SegmentTable:
    """Segments by owner and kind, at most one each. Sizes and offsets are bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.moves = 0  # segments that had to lie elsewhere
        self._segments: list[Segment] = []  # by offset

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self._segments)

    @property
    def used(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def free(self) -> int:
        return self.budget - self.used

    @property
    def largest_hole(self) -> int:
        return max((size for _, size in self._holes()), default=0)

    @property
    def fragmentation(self) -> float:
        """The share of what is free that lies outside the largest hole."""
        return 1 - self.largest_hole / self.free if self.free else 0.0

    def size(self, owner: str, kind: SegmentKind) -> int:
        """0 for one that is not there."""
        found = self._find(owner, kind)
        return found.size if found else 0

    def resize(self, owner: str, kind: SegmentKind, size: int) -> None:
        """Let it have this size: a new one is placed, one of size 0 is gone. So much must be free."""
        old = self._find(owner, kind)
        assert size - (old.size if old else 0) <= self.free, f"{owner} {kind}: {size} bytes do not fit the budget"
        if old is not None:
            self._segments.remove(old)
        if old is not None and 0 < size <= self._room_at(old.offset):
            self._put(Segment(owner, kind, old.offset, size))
        elif size:
            self.moves += old is not None
            self._put(Segment(owner, kind, self._hole_for(size), size))

    def release(self, owner: str) -> None:
        """All its segments are gone."""
        self._segments = [segment for segment in self._segments if segment.owner != owner]

    # ---- placement

    def _hole_for(self, size: int) -> int:
        """Where the smallest hole begins that is large enough; without one all others are moved together."""
        fitting = [(room, offset) for offset, room in self._holes() if room >= size]
        if fitting:
            return min(fitting)[1]
        end = 0
        for place, segment in enumerate(self._segments):
            self.moves += segment.offset != end
            self._segments[place] = Segment(segment.owner, segment.kind, end, segment.size)
            end += segment.size
        return end

    def _holes(self) -> Iterator[tuple[int, int]]:
        """(offset, size)"""
        end = 0
        for segment in self._segments:
            if segment.offset > end:
                yield end, segment.offset - end
            end = segment.offset + segment.size
        if self.budget > end:
            yield end, self.budget - end

    def _room_at(self, offset: int) -> int:
        """Bytes from here to the next segment."""
        return min((s.offset for s in self._segments if s.offset >= offset), default=self.budget) - offset

    def _put(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._segments.sort(key=lambda one: one.offset)

    def _find(self, owner: str, kind: SegmentKind) -> Segment | None:
        return next((s for s in self._segments if (s.owner, s.kind) == (owner, kind)), None)

    def check(self) -> None:
        names = [(segment.owner, segment.kind) for segment in self._segments]
        assert len(set(names)) == len(names), "a segment is there twice"
        assert all(segment.size > 0 and segment.offset >= 0 for segment in self._segments), "a segment without size"
        assert all(a.offset + a.size <= b.offset for a, b in pairwise(self._segments)), "segments overlap"
        assert self._segments == [] or self._segments[-1].offset + self._segments[-1].size <= self.budget
        assert sum(size for _, size in self._holes()) == self.free, "holes and segments are not the budget"
