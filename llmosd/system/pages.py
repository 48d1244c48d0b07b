"""Paged KV memory: which pages are free, who refers to them, and the page table the executor reads.

Only page numbers live here; the tensors belong to the runtime. A page may be referred to by several rows, after a fork
or for a prefix they have in common; it is copied when one of them is about to write into it (copy-on-write). When none
refers to it, it is idle if the prefix cache knows what it holds, and free otherwise. A pinned page is neither, whoever
refers to it: a copy or a transfer uses it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat

from llmosd.system.prefix_cache import PrefixCache
from llmosd.types import PageCopy, PageState

UNUSED = -1
_STATES = [ord(state) for state in (PageState.FREE, PageState.USED, PageState.SHARED)]  # by references


class PagePool:
    """Reference-counted pages with an O(1) free list, and a count of pages promised but not drawn yet.

    A promise (`reserve`) keeps pages from everybody else; its holder gives it up (`unreserve`) as it draws. Idle pages
    are as good as free: they leave the cache when their memory is drawn.

    Only the first `total` pages of `most` are drawn. When `total` becomes less, what is beyond moves to free pages.
    What finds none, or takes part in a transfer, stays in use there, and is gone with its last reference.
    """

    def __init__(self, pages: int, cache: PrefixCache) -> None:
        self.most = pages
        self.total = pages
        self.beyond = 0  # pages from `total` on that are in use
        self.cache = cache
        self.reserved = 0
        self.shared = 0  # pages with more than one reference
        self.leaving = 0  # pages with pins and no reference: free as soon as the pins go
        self._references = array("i", bytes(4 * pages))
        self._pins: dict[int, int] = {}
        self._copied: list[int] = []  # pinned for the step in the making
        self._free = list(range(pages - 1, -1, -1))
        self._idle_beyond: set[int] = set()  # to be taken out of the cache, with what follows them there

    @property
    def idle(self) -> int:
        """Pages that nobody refers to and the cache keeps."""
        return self.cache.idle - len(self._idle_beyond)

    @property
    def free(self) -> int:
        """Pages that nobody refers to, idle ones included."""
        return len(self._free) + self.idle

    @property
    def used(self) -> int:
        return self.total - self.free + self.beyond

    @property
    def available(self) -> int:
        """Free and promised to nobody."""
        return self.free - self.reserved

    @property
    def pressure(self) -> float:
        """Share of the pool's pages that are not to be had."""
        return 1 - self.available / self.total if self.total > 0 else 1.0

    @property
    def blank(self) -> int:
        """Available pages that hold nothing."""
        return min(len(self._free), self.available)

    @property
    def overflow(self) -> int:
        """Pages that are referred to or promised for which the pool has become too small, wherever they are."""
        return max(0, self.used - self.leaving + self.reserved - self.total)

    @property
    def can_move(self) -> bool:
        """Whether `resize` to the size that it has would move pages that are in use."""
        return self.beyond > 0 and self.available > 0 and next(self._movable(), None) is not None

    @property
    def pinned(self) -> int:
        """Pins, several of a page counted each."""
        return sum(self._pins.values())

    def references(self, page: int) -> int:
        return self._references[page]

    def reserve(self, pages: int) -> None:
        assert pages <= self.available, f"{pages} pages promised of {self.available}"
        self.reserved += pages

    def unreserve(self, pages: int) -> None:
        assert pages <= self.reserved, f"{pages} pages given up of {self.reserved} promised"
        self.reserved -= pages

    def draw(self) -> int:
        """A free page, now with one reference. The caller has made sure that one is available."""
        page = self._free.pop() if self._free else self._reclaim()
        self._references[page] = 1
        return page

    def _reclaim(self) -> int:
        while (page := self.cache.reclaim()) >= self.total:
            self._idle_beyond.remove(page)
        return page

    def share(self, page: int) -> None:
        """One reference more, to a page in use or idle."""
        if self._references[page] == 0:
            self._return(page)
        self._references[page] += 1
        self.shared += self._references[page] == 2

    def drop(self, page: int) -> None:
        """Give up one reference; with the last one the page is idle or free."""
        left = self._references[page] = self._references[page] - 1
        self.shared -= left == 1
        if left == 0 and page in self._pins:
            self.leaving += 1
        elif left == 0:
            self._rest(page)

    def pin(self, page: int) -> None:
        """Keep a page, in use or idle, from being drawn until as many `unpin`."""
        if self._references[page] == 0:
            self._return(page)
            self.leaving += 1
        self._pins[page] = self._pins.get(page, 0) + 1

    def unpin(self, page: int) -> None:
        left = self._pins[page] = self._pins[page] - 1
        if left == 0:
            del self._pins[page]
            if self._references[page] == 0:
                self.leaving -= 1
                self._rest(page)

    def merge(self, idle: int, page: int) -> None:
        """What an idle page holds is in one that is in use too: the cache has it there, and the idle one is free."""
        self._revive(idle)
        self.beyond -= idle >= self.total
        self.cache.move(idle, page)
        if idle < self.total:
            self._free.append(idle)

    def hold(self, page: int) -> None:
        """Pin a page until `unhold`: the step in the making copies from it."""
        self.pin(page)
        self._copied.append(page)

    def unhold(self) -> None:
        """The copies are made."""
        copied, self._copied = self._copied, []
        for page in copied:
            self.unpin(page)

    def _return(self, page: int) -> None:
        """A page without reference is to have one, or a pin: it is idle or has pins."""
        if page in self._pins:
            self.leaving -= 1
        else:
            self._revive(page)

    def _revive(self, page: int) -> None:
        self.cache.revive(page)
        if page >= self.total:
            self._idle_beyond.remove(page)
            self.beyond += 1

    def _rest(self, page: int) -> None:
        idle, inside = self.cache.retire(page), page < self.total
        self.beyond -= not inside
        if idle and not inside:
            self._idle_beyond.add(page)
        elif inside and not idle:
            self._free.append(page)

    # ---- size

    @property
    def extent(self) -> int:
        """Pages 0 … extent−1 may hold something: the memory of all others is not needed."""
        if not self.beyond and not self._idle_beyond:
            return self.total
        return max(page for page in range(self.most) if self._is_in_use(page) or page in self._idle_beyond) + 1

    def resize(self, pages: int) -> dict[int, int]:
        """Between steps: draw from the first `pages` pages only, or from some more while promises need them.

        The result says of pages beyond which others their contents are to be copied to before the next step; whoever
        refers to one is to refer to the other. Idle pages move where there is a blank one; the others leave the cache
        at once, with those that follow them there.
        """
        assert 0 <= pages <= self.most, f"a pool of {pages} pages of at most {self.most}"
        unused = 0
        for page in range(self.most):
            if page >= pages and unused >= self.reserved:
                break
            unused += not self._is_in_use(page)
        else:
            page = self.most
        self.total = page
        beyond = range(page, self.most)
        self.beyond = sum(map(self._is_in_use, beyond))
        self._idle_beyond = {page for page in beyond if self.cache.is_idle(page)}
        self._free = [page for page in reversed(range(page)) if self._is_free(page)]
        moved = dict[int, int]()
        for source in self._movable():
            if not self.available:
                break
            moved[source] = self._move(source)
        for source in sorted(self._idle_beyond, key=self.cache.depth):  # none before those that it follows
            if not self.blank:
                break
            moved[source] = self._move_idle(source)
        self.sweep()
        return moved

    def _movable(self) -> Iterator[int]:
        """Pages beyond that are in use and not pinned, from the last one on."""
        beyond = reversed(range(self.total, self.most))
        return (page for page in beyond if self._references[page] and page not in self._pins)

    def _move(self, page: int) -> int:
        target = self.draw()
        self._references[target], self._references[page] = self._references[page], 0
        self.cache.move(page, target)
        self.beyond -= 1
        return target

    def _move_idle(self, page: int) -> int:
        target = self._free.pop()
        self.cache.move(page, target)
        self._idle_beyond.remove(page)
        return target

    def sweep(self) -> None:
        """Between steps: take idle pages beyond out of the cache, unless one that follows them is in use."""
        for page in sorted(self._idle_beyond):
            node = self.cache.node_of(page)
            if node is not None and page in self._idle_beyond:
                for gone in self.cache.prune(node):
                    self._idle_beyond.discard(gone)
                    if gone < self.total:
                        self._free.append(gone)

    def _is_in_use(self, page: int) -> bool:
        return self._references[page] > 0 or page in self._pins

    def _is_free(self, page: int) -> bool:
        return not self._is_in_use(page) and not self.cache.is_idle(page)

    # ---- inspection

    def states(self, arriving: Iterable[int]) -> bytes:
        """A `PageState` for each page that was ever there, between steps."""
        states = bytearray(map(_STATES.__getitem__, map(min, self._references, repeat(2))))
        for page in self.cache.idle_pages():
            states[page] = ord(PageState.CACHED)
        for page in arriving:
            states[page] = ord(PageState.ARRIVING)
        for page in self._pins:
            if self._references[page] == 0:
                states[page] = ord(PageState.LEAVING)
        beyond = states[self.total :]
        return bytes(states[: self.total] + beyond.replace(PageState.FREE.encode(), PageState.GONE.encode()))

    def check(self) -> None:
        self.cache.check()
        free = set(self._free)
        assert len(free) == len(self._free), "a page is in the free list twice"
        for page in range(self.most):
            unused = not self._is_in_use(page)
            known = page in free or self.cache.is_idle(page)
            assert unused == known or (unused and page >= self.total), "free is not unused"
            assert not (page in free and page >= self.total), "a page beyond the pool's size is free"
            assert not (page in free and self.cache.node_of(page)), "a free page is still in the cache"
        assert all(count >= 0 for count in self._references), "a page was dropped too often"
        leaving = sum(self._references[page] == 0 for page in self._pins)
        assert self.leaving == leaving, "pages that leave are miscounted"
        assert self.shared == sum(count > 1 for count in self._references), "shared pages are miscounted"
        assert 0 <= self.reserved <= self.free, f"{self.reserved} pages promised of {self.free} free"
        beyond = range(self.total, self.most)
        assert self.beyond == sum(map(self._is_in_use, beyond)), "pages beyond the pool's size are miscounted"
        assert self._idle_beyond == {page for page in beyond if self.cache.is_idle(page)}, "idle pages are miscounted"


class PageTable:
    """`rows` × `columns` page numbers in one flat array: entry (r, c) holds tokens c·S … c·S+S−1 of row r.

    Unused entries are `UNUSED`. A row belongs to one running sequence from `take_row` to `release`.
    """

    def __init__(self, pool: PagePool, rows: int, columns: int, page_tokens: int) -> None:
        self.pool = pool
        self.rows = rows
        self.columns = columns
        self.page_tokens = page_tokens
        self.entries = array("i", [UNUSED]) * (rows * columns)
        self._lengths = [0] * rows
        self._free_rows = list(range(rows - 1, -1, -1))

    def resize(self, pages: int) -> tuple[PageCopy, ...]:
        """The pool's; to be made before the next step are the copies of pages that have moved."""
        moved = self.pool.resize(pages)
        if moved:
            for entry, page in enumerate(self.entries):
                self.entries[entry] = moved.get(page, page)
        return tuple(PageCopy(source, target) for source, target in moved.items())

    @property
    def free_rows(self) -> int:
        return len(self._free_rows)

    def pages(self, row: int) -> int:
        return self._lengths[row]

    def distinct(self, rows: list[int]) -> int:
        """Pages that these rows refer to, each counted once."""
        if len(rows) == 1:
            return self._lengths[rows[0]]
        starts = [(row * self.columns, self._lengths[row]) for row in rows]
        return len({page for start, length in starts for page in self.entries[start : start + length]})

    def take_row(self) -> int:
        return self._free_rows.pop()

    def needed(self, row: int, past: int, end: int) -> int:
        """Pages to be drawn before `row`, which holds `past` tokens, can take tokens up to `end`."""
        return -(-end // self.page_tokens) - self._lengths[row] + self._must_copy(row, past)

    def needed_together(self, parts: list[tuple[int, int, int]]) -> int:
        """Pages to be drawn for all of (row, past, end): the last to write to a page they share does not copy it."""
        pages = [self.last_page(row) for row, past, _ in parts if self._must_copy(row, past)]
        last = sum(pages.count(page) == self.pool.references(page) for page in set(pages))
        return sum(self.needed(*part) for part in parts) - last

    def extend(self, row: int, past: int, end: int) -> list[PageCopy]:
        """Make positions past … end−1 of `row` writable: copy a shared last page, draw the missing ones."""
        copies = [self._unshare(row)] if self._must_copy(row, past) else []
        for _ in range(self._lengths[row], -(-end // self.page_tokens)):
            self.draw(row)
        return copies

    def contents(self, row: int) -> array[int]:
        """The pages of a row, in order."""
        return self.entries[row * self.columns : row * self.columns + self._lengths[row]]

    def draw(self, row: int) -> int:
        """Let `row` go on with a free page; its number."""
        page = self.entries[row * self.columns + self._lengths[row]] = self.pool.draw()
        self._lengths[row] += 1
        return page

    def adopt(self, row: int, page: int) -> None:
        """Let `row` go on with a page that holds what it would compute."""
        self.pool.share(page)
        self.entries[row * self.columns + self._lengths[row]] = page
        self._lengths[row] += 1

    def replace(self, row: int, column: int, page: int) -> None:
        """Refer to another page with the same contents instead."""
        entry = row * self.columns + column
        self.pool.share(page)
        self.pool.drop(self.entries[entry])
        self.entries[entry] = page

    def page(self, row: int, column: int) -> int:
        return self.entries[row * self.columns + column]

    def fork(self, source: int, target: int) -> None:
        """Let the empty row `target` refer to all pages of `source`."""
        assert self._lengths[target] == 0, f"row {target} is forked into while it holds pages"
        for column in range(self._lengths[source]):
            page = self.entries[source * self.columns + column]
            self.pool.share(page)
            self.entries[target * self.columns + column] = page
        self._lengths[target] = self._lengths[source]

    def release(self, row: int) -> None:
        """Give back the row and its references."""
        self.cut(row, 0)
        self._free_rows.append(row)

    def cut(self, row: int, pages: int) -> None:
        """Give back all references of a row but those to its first `pages` pages."""
        first = row * self.columns
        for entry in range(first + pages, first + self._lengths[row]):
            self.pool.drop(self.entries[entry])
            self.entries[entry] = UNUSED
        self._lengths[row] = pages

    def _must_copy(self, row: int, past: int) -> bool:
        if not self.pool.shared:  # nearly always: asked for each sequence of each step
            return False
        return past % self.page_tokens > 0 and self.pool.references(self.last_page(row)) > 1

    def last_page(self, row: int) -> int:
        return self.entries[row * self.columns + self._lengths[row] - 1]

    def _unshare(self, row: int) -> PageCopy:
        source, target = self.last_page(row), self.pool.draw()
        self.entries[row * self.columns + self._lengths[row] - 1] = target
        self.pool.drop(source)
        return PageCopy(source, target)

    def check(self) -> None:
        self.pool.check()
        references = [0] * self.pool.most
        for row, length in enumerate(self._lengths):
            entries = self.entries[row * self.columns : (row + 1) * self.columns]
            assert all(page == UNUSED for page in entries[length:]), f"row {row} has entries past its end"
            for page in entries[:length]:
                references[page] += 1
        assert all(self.pool.references(page) == count for page, count in enumerate(references)), "references differ"
        free_rows = set(self._free_rows)
        assert len(free_rows) == len(self._free_rows), "a row is in the free list twice"
        assert not any(self._lengths[row] for row in free_rows), "a free row holds pages"
