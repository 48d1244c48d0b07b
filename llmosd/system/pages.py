"""Paged KV memory: which pages are free, who refers to them, and the page table the executor reads.

Only page numbers live here; the tensors belong to the runtime. A page may be referred to by several rows after a
fork; it is copied when one of them is about to write into it (copy-on-write) and free when none refers to it.
"""

from __future__ import annotations

from array import array

from llmosd.types import PageCopy

UNUSED = -1


class PagePool:
    """Reference-counted pages with an O(1) free list, and a count of pages promised but not drawn yet.

    A promise (`reserve`) keeps pages from everybody else; its holder gives it up (`unreserve`) as it draws.
    """

    def __init__(self, pages: int) -> None:
        self.total = pages
        self.reserved = 0
        self.shared = 0  # pages with more than one reference
        self._references = array("i", bytes(4 * pages))
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    @property
    def available(self) -> int:
        """Free and promised to nobody."""
        return len(self._free) - self.reserved

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
        page = self._free.pop()
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        self._references[page] += 1
        self.shared += self._references[page] == 2

    def drop(self, page: int) -> bool:
        """Give up one reference; True when that freed the page."""
        left = self._references[page] = self._references[page] - 1
        self.shared -= left == 1
        if left == 0:
            self._free.append(page)
        return left == 0

    def check(self) -> None:
        free = set(self._free)
        assert len(free) == len(self._free), "a page is in the free list twice"
        assert all((page in free) == (count == 0) for page, count in enumerate(self._references)), "free is not unused"
        assert all(count >= 0 for count in self._references), "a page was dropped too often"
        assert self.shared == sum(count > 1 for count in self._references), "shared pages are miscounted"
        assert 0 <= self.reserved <= len(self._free), f"{self.reserved} pages promised of {len(self._free)} free"


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

    @property
    def free_rows(self) -> int:
        return len(self._free_rows)

    def pages(self, row: int) -> int:
        return self._lengths[row]

    def take_row(self) -> int:
        return self._free_rows.pop()

    def needed(self, row: int, past: int, end: int) -> int:
        """Pages to be drawn before `row`, which holds `past` tokens, can take tokens up to `end`."""
        return -(-end // self.page_tokens) - self._lengths[row] + self._must_copy(row, past)

    def extend(self, row: int, past: int, end: int) -> list[PageCopy]:
        """Make positions past … end−1 of `row` writable: copy a shared last page, draw the missing ones."""
        copies = [self._unshare(row)] if self._must_copy(row, past) else []
        first = row * self.columns
        for column in range(self._lengths[row], -(-end // self.page_tokens)):
            self.entries[first + column] = self.pool.draw()
            self._lengths[row] += 1
        return copies

    def fork(self, source: int, target: int) -> None:
        """Let the empty row `target` refer to all pages of `source`."""
        assert self._lengths[target] == 0, f"row {target} is forked into while it holds pages"
        for column in range(self._lengths[source]):
            page = self.entries[source * self.columns + column]
            self.pool.share(page)
            self.entries[target * self.columns + column] = page
        self._lengths[target] = self._lengths[source]

    def release(self, row: int) -> int:
        """Give back the row and its references; the number of pages that this freed."""
        freed = 0
        for entry in range(row * self.columns, row * self.columns + self._lengths[row]):
            freed += self.pool.drop(self.entries[entry])
            self.entries[entry] = UNUSED
        self._lengths[row] = 0
        self._free_rows.append(row)
        return freed

    def _must_copy(self, row: int, past: int) -> bool:
        if not self.pool.shared:  # nearly always: asked for each sequence of each step
            return False
        return past % self.page_tokens > 0 and self.pool.references(self._last_page(row)) > 1

    def _last_page(self, row: int) -> int:
        return self.entries[row * self.columns + self._lengths[row] - 1]

    def _unshare(self, row: int) -> PageCopy:
        source, target = self._last_page(row), self.pool.draw()
        self.entries[row * self.columns + self._lengths[row] - 1] = target
        self.pool.drop(source)
        return PageCopy(source, target)

    def check(self) -> None:
        self.pool.check()
        references = [0] * self.pool.total
        for row, length in enumerate(self._lengths):
            entries = self.entries[row * self.columns : (row + 1) * self.columns]
            assert all(page == UNUSED for page in entries[length:]), f"row {row} has entries past its end"
            for page in entries[:length]:
                references[page] += 1
        assert all(self.pool.references(page) == count for page, count in enumerate(references)), "references differ"
        free_rows = set(self._free_rows)
        assert len(free_rows) == len(self._free_rows), "a row is in the free list twice"
        assert not any(self._lengths[row] for row in free_rows), "a free row holds pages"
