"""Page pool, page table and prefix cache beside a model of them that knows what every page holds.

A slot of a page holds a hash of all tokens up to its own, as the K and V of a deep layer do. The model is as simple as
it can be: histories as lists, contents as lists, and which full pages the cache must know as a dictionary.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import takewhile

from llmosd.system.pages import PagePool, PageTable
from llmosd.system.prefix_cache import NO_PAGE, Node, PrefixCache
from tests.system.symbolic import EMPTY, fold

SALTS = ("", "a")
GONE = -3


@dataclass(eq=False)
class Row:
    """A sequence: its tokens, and what its pages must hold."""

    number: int
    salt: str
    family: int  # those forked from each other have one in common
    tokens: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    node: Node | None = None  # its last full page in the cache

    def grow(self, tokens: list[int]) -> None:
        for token in tokens:
            self.states.append(fold(self.states[-1] if self.states else start(self.salt), token))
        self.tokens += tokens


class MemoryWorld:
    """Every operation says whether it took place; `check` after each of them."""

    def __init__(self, pages: int, rows: int, columns: int, size: int) -> None:
        self.shape = (pages, rows, columns, size)
        self.size = size
        self.evicted = self.copied = self.moved = self.families = 0
        self._build()

    def _build(self) -> None:
        pages, rows, columns, size = self.shape
        self.cache = PrefixCache(size, b"a secret")
        self.pool = PagePool(pages, self.cache)
        self.table = PageTable(self.pool, rows, columns, size)
        self.contents = [[EMPTY] * size for _ in range(pages)]
        self.rows: list[Row] = []
        self.promises: list[int] = []
        self.known: dict[tuple[str, tuple[int, ...]], Node] = {}  # full pages by salt and all tokens up to their ends
        self.held: set[int] = set()  # pages with references at the last check

    # ---- operations

    def begin(self, salt: str, tokens: list[int]) -> bool:
        """A sequence with a prompt: what the cache knows is shared, what it has in common with a page is copied."""
        if not self.table.free_rows:
            return False
        row = self._new_row(salt)
        self.rows.append(row)
        path = self.cache.walk(self.cache.root(salt), as_bytes(tokens[:-1]))
        assert path == self._expected_path(salt, tokens[:-1]), "the cache knows other pages"
        while sum(self.cache.is_idle(node.page) for node in path) > self.pool.available:
            path.pop()  # promised to others
        for node in path:
            self.table.adopt(row.number, node.page)
            row.node = node
        row.grow(tokens[: len(path) * self.size])
        self._copy_common(row, tokens[len(row.tokens) : -1][: self.size])
        self._append(row, tokens[len(row.tokens) :])
        return True

    def append(self, place: int, tokens: list[int]) -> bool:
        return bool(self.rows) and self._append(self.rows[place % len(self.rows)], tokens)

    def fork(self, place: int) -> bool:
        if not self.rows or not self.table.free_rows:
            return False
        source = self.rows[place % len(self.rows)]
        target = Row(
            self.table.take_row(), source.salt, source.family, list(source.tokens), list(source.states), source.node
        )
        self.table.fork(source.number, target.number)
        self.rows.append(target)
        return True

    def end(self, place: int, remember: bool) -> bool:
        if not self.rows:
            return False
        row = self.rows.pop(place % len(self.rows))
        if remember:
            self._enter_tail(row)
        self.table.release(row.number)
        return True

    def evict(self) -> bool:
        """A sequence takes all memory that is there, and leaves: whatever was idle before is gone or was its own."""
        if not self.table.free_rows or not self.pool.available:
            return False
        row = self._new_row("another")
        pages = min(self.pool.available, self.table.columns)
        self.rows.append(row)
        self._append(row, [self.evicted % 7] * (pages * self.size))
        return self.end(-1, False)

    def promise(self, pages: int) -> bool:
        if not 0 < pages <= self.pool.available:
            return False
        self.pool.reserve(pages)
        self.promises.append(pages)
        return True

    def give_up(self, place: int) -> bool:
        if not self.promises:
            return False
        self.pool.unreserve(self.promises.pop(place % len(self.promises)))
        return True

    def resize(self, pages: int) -> bool:
        """Memory is given back or taken; what is in use stays, and what is promised can still be had."""
        pages = min(pages, self.pool.most)
        for copy in self.table.resize(pages):
            self._copy(copy.source, copy.target)
            self.moved += 1
        for page in range(self.pool.extent, self.pool.most):
            self.contents[page] = [GONE] * self.size
        assert self.pool.total == pages or self.pool.available == 0, "it kept more than promises need"
        assert not self.pool.can_move, "pages beyond are left that could have moved"
        return True

    def crash(self) -> bool:
        """All is thrown away and built anew; what was running computes again, as far as there is memory."""
        old = self.rows
        self._build()
        for row in old:
            self.begin(row.salt, row.tokens) if row.tokens else None
        return True

    def drain(self) -> None:
        """Nothing is left behind: with all sequences gone, every page can be had."""
        while self.rows:
            self.end(0, True)
        while self.promises:
            self.give_up(0)
        self.pool.resize(self.pool.most)
        assert (self.pool.used, self.pool.available) == (0, self.pool.total), "pages have leaked"
        pages = [self.pool.draw() for _ in range(self.pool.total)]
        assert sorted(pages) == list(range(self.pool.total))
        for page in pages:
            self.pool.drop(page)
        self.known.clear()
        self.check()

    # ---- how

    def _new_row(self, salt: str) -> Row:
        self.families += 1
        return Row(self.table.take_row(), salt, self.families)

    def _append(self, row: Row, tokens: list[int]) -> bool:
        past, end = len(row.tokens), len(row.tokens) + len(tokens)
        if end > self.table.columns * self.size or self.table.needed(row.number, past, end) > self.pool.available:
            return False
        for copy in self.table.extend(row.number, past, end):
            self._copy(copy.source, copy.target)
        row.grow(tokens)
        for position in range(past, end):
            page = self.table.page(row.number, position // self.size)
            self.contents[page][position % self.size] = row.states[position]
        self._settle(row)
        return True

    def _copy_common(self, row: Row, ahead: list[int]) -> None:
        node, common = self.cache.closest(self._parent(row), as_bytes(ahead))
        if node is None or not self.pool.available or (self.cache.is_idle(node.page) and self.pool.available == 1):
            return
        self.pool.hold(node.page)
        past = len(row.tokens)
        assert self.table.extend(row.number, past, past + 1) == []
        self._copy(node.page, self.table.page(row.number, past // self.size))
        self.pool.unhold()
        row.grow(ahead[:common])

    def _copy(self, source: int, target: int) -> None:
        self.contents[target] = list(self.contents[source])
        self.copied += 1

    def _settle(self, row: Row) -> None:
        """Full pages go into the cache; one that it knows already takes the place of the row's own."""
        filled = row.node.depth // self.size + 1 if row.node else 0
        for column in range(filled, len(row.tokens) // self.size):
            start, end = column * self.size, (column + 1) * self.size
            tokens, page = as_bytes(row.tokens[start:end]), self.table.page(row.number, column)
            known = self.cache.find(self._parent(row), tokens)
            if known is None or known.page != page:
                if (tail := self.cache.node_of(page)) is not None:
                    self.cache.forget(tail)
                if known is None:
                    known = self.cache.insert(self._parent(row), tokens, page)
                    self.known[row.salt, tuple(row.tokens[:end])] = known
                elif self.cache.is_idle(known.page):
                    self.pool.merge(known.page, page)
                else:
                    self.table.replace(row.number, column, known.page)
            row.node = known

    def _enter_tail(self, row: Row) -> None:
        start = len(row.tokens) // self.size * self.size
        if start == len(row.tokens):
            return
        tokens, page = as_bytes(row.tokens[start:]), self.table.page(row.number, start // self.size)
        if (tail := self.cache.node_of(page)) is not None:
            tail.tokens = tokens
        elif self.pool.references(page) == 1:
            self.cache.insert(self._parent(row), tokens, page)

    def _parent(self, row: Row) -> Node:
        return row.node or self.cache.root(row.salt)

    def _expected_path(self, salt: str, tokens: list[int]) -> list[Node]:
        ends = range(self.size, len(tokens) + 1, self.size)
        path = [self.known.get((salt, tuple(tokens[:end]))) for end in ends]
        return [node for node in takewhile(lambda node: node is not None, path) if node]

    # ---- invariants

    def check(self) -> None:
        self.table.check()
        held = set[int]()
        for row in self.rows:
            self._check_row(row, held)
        assert self.pool.used == len(held | self.in_transfer), "pages are in use that nobody refers to"
        assert self.pool.reserved == sum(self.promises)
        lengths = [len(row.tokens) for row in self.rows]
        places = self.size * sum(self.table.pages(row.number) for row in self.rows)
        assert places - sum(lengths) == sum(-length % self.size for length in lengths), "more is wasted than last pages"
        self._check_cache(held)

    @property
    def in_transfer(self) -> set[int]:
        return set()

    def _check_row(self, row: Row, held: set[int]) -> None:
        pages = [self.table.page(row.number, column) for column in range(self.table.pages(row.number))]
        assert len(pages) == -(-len(row.tokens) // self.size)
        read = [state for page in pages for state in self.contents[page]]
        assert read[: len(row.states)] == row.states, "a row reads another history"
        held.update(pages)

    def _check_cache(self, held: set[int]) -> None:
        """Every page in the tree holds what the tree says, and a page is only ever lost when nobody refers to it."""
        roots = {self.cache.root(salt).key: salt for salt in (*SALTS, "another")}
        for page in range(self.pool.most):
            if (node := self.cache.node_of(page)) is not None:
                parent = node.parent
                assert parent is not None
                at_root = parent.page == NO_PAGE
                state = start(roots[parent.key]) if at_root else self.contents[parent.page][-1]
                for token, found in zip(array("i", node.tokens), self.contents[page], strict=False):
                    state = fold(state, token)
                    assert found == state, "a page in the cache holds something else"
        for key, node in list(self.known.items()):
            if self.cache.node_of(node.page) is not node:
                assert node.page not in self.held, "the cache lost a page in use"
                del self.known[key]
                self.evicted += 1
        self.held = held


def start(salt: str) -> int:
    return fold(0, 1000 + len(salt))


def as_bytes(tokens: list[int]) -> bytes:
    return array("i", tokens).tobytes()
