"""Sequences and the prefix cache: what a sequence need not compute, and what it leaves behind for others.

A sequence in prefill stands at a page border with all pages before it in the tree. There it goes on with the page that
the tree has, or copies the tokens it has in common with one, or lets a request before it compute them first. At least
its last token is always computed: its logits are wanted.
"""

from __future__ import annotations

from array import array

from llmosd.system.pages import PageTable
from llmosd.system.prefix_cache import TOKEN_BYTES, Node, PrefixCache
from llmosd.system.request import Request, Sequence
from llmosd.types import PageCopy, State

BorderKey = tuple[Node | None, str, bytes]


class PrefixReuse:
    """The tree is the cache's, a sequence's place in it the sequence's."""

    def __init__(self, table: PageTable, *, remember: bool) -> None:
        self._table = table
        self._pool = table.pool
        self._cache: PrefixCache = table.pool.cache
        self._size = table.page_tokens
        self._remember = remember
        self._worth_copying = max(1, table.page_tokens // 4)  # tokens; fewer are computed as fast
        self._walked: tuple[Request | None, list[Node]] = None, []  # whose path was asked for last, and the path
        self.hits = 0  # tokens that were not computed

    # ---- on admission

    def path(self, request: Request) -> list[Node]:
        """Full pages that a waiting request's first live sequence can go on with."""
        if not self._remember:
            return []
        leader = request.live[0]
        end = leader.length - 1 if len(request.live) == 1 else request.prompt_tokens - 1
        known, path = self._walked
        if known is not request:  # else who waits asks in each step: only what has changed is walked
            path = []
            self._walked = request, path
        while path and not self._cache.has(path[-1]):
            path.pop()
        place, start = path[-1] if path else self._cache.root(request.salt), len(path) * self._size
        if start + self._size <= end and self._cache.find(place, packed(leader, start, start + self._size)):
            path += self._cache.walk(place, packed(leader, start, end))
        return list(path)

    def idle(self, path: list[Node]) -> int:
        """How many of these pages become unavailable to others when they are adopted."""
        return sum(self._cache.is_idle(node.page) for node in path)

    def adopt(self, sequence: Sequence, path: list[Node]) -> None:
        """Let an empty or border-standing sequence go on with these pages."""
        for node in path:
            self._table.adopt(sequence.row, node.page)
            sequence.node = node
        self._skip(sequence, len(path) * self._size)

    # ---- in prefill

    def is_at_border(self, sequence: Sequence) -> bool:
        """Whether the tree may have the page that comes next."""
        return self._remember and sequence.past % self._size == 0

    def advance(self, sequence: Sequence) -> int:
        """Adopt whatever follows in the tree by now; the number of pages, which were promised to the request."""
        pages = 0
        if not self.is_at_border(sequence):
            return pages
        while sequence.past + self._size <= self._end(sequence):
            node = self._cache.find(self.place(sequence), packed(sequence, sequence.past, sequence.past + self._size))
            if node is None:
                break
            self.adopt(sequence, [node])
            pages += 1
        return pages

    def partial(self, sequence: Sequence) -> tuple[Node | None, int]:
        """(page, tokens) of the tree worth copying from at the border where the sequence stands."""
        if not self.is_at_border(sequence):
            return None, 0
        node, common = self._cache.closest(self.place(sequence), self._ahead(sequence))
        return (node, common) if common >= self._worth_copying else (None, 0)

    def take(self, sequence: Sequence, node: Node, common: int, target: int) -> PageCopy:
        """Fill the page `target`, the last of the sequence's row, with the tokens in common; the node's is held."""
        self._skip(sequence, common)
        return PageCopy(node.page, target)

    def awaited(self, sequence: Sequence) -> BorderKey | None:
        """What says of a sequence in prefill that another computes the page it needs next, or enough of it."""
        return self._border_key(sequence, sequence.past, self._end(sequence)) if self.is_at_border(sequence) else None

    def computed(self, sequence: Sequence) -> BorderKey | None:
        """The same, of a sequence that computes: the tree's place it goes on from, and the tokens that make a copy."""
        if not self._remember:
            return None
        start = sequence.node.depth + self._size if sequence.node else 0
        return self._border_key(sequence, start, sequence.length)

    def _border_key(self, sequence: Sequence, start: int, end: int) -> BorderKey | None:
        if start + self._worth_copying > end:
            return None
        return sequence.node, sequence.request.salt, packed(sequence, start, start + self._worth_copying)

    # ---- what is left behind

    def settle(self, sequence: Sequence) -> None:
        """Enter the pages that the last step filled; one that another has filled alike meanwhile is given back."""
        if not self._remember:
            return
        filled = sequence.node.depth // self._size + 1 if sequence.node else 0
        for column in range(filled, sequence.past // self._size):
            self._settle_page(sequence, column)
        alone = len(sequence.request.sequences) == 1
        if alone and sequence.gained and sequence.request.state is State.PREFILL:
            self._enter_tail(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Before its row is released: its last page may serve whoever goes on from there."""
        if self._remember:
            self._enter_tail(sequence)

    def _settle_page(self, sequence: Sequence, column: int) -> None:
        tokens = packed(sequence, column * self._size, (column + 1) * self._size)
        parent, page = self.place(sequence), self._table.page(sequence.row, column)
        known = self._cache.find(parent, tokens)
        if known is None or known.page != page:
            if (tail := self._cache.node_of(page)) is not None:
                self._cache.forget(tail)
            if known is None:
                known = self._cache.insert(parent, tokens, page)
            elif self._cache.is_idle(known.page):
                self._pool.merge(known.page, page)
            else:
                self._table.replace(sequence.row, column, known.page)
        sequence.node = known

    def _enter_tail(self, sequence: Sequence) -> None:
        """The tokens after the last full page, unless another page has them or other sequences write to this one."""
        start = sequence.past // self._size * self._size
        if start == sequence.past:
            return
        tokens, page = packed(sequence, start, sequence.past), self._table.page(sequence.row, start // self._size)
        if (tail := self._cache.node_of(page)) is not None:
            tail.tokens = tokens
        elif self._pool.references(page) == 1:
            _, common = self._cache.closest(self.place(sequence), tokens)
            if common * TOKEN_BYTES < len(tokens):
                self._cache.insert(self.place(sequence), tokens, page)

    # ---- inspection

    @property
    def remembers(self) -> bool:
        return self._remember

    def tail(self, sequence: Sequence) -> bytes:
        """The tokens in its last page."""
        return packed(sequence, sequence.past // self._size * self._size, sequence.past)

    def place(self, sequence: Sequence) -> Node:
        """Its last full page in the tree, or the root."""
        return sequence.node or self._cache.root(sequence.request.salt)

    # ---- small things

    def _end(self, sequence: Sequence) -> int:
        """How far a sequence can do without computing."""
        return min(sequence.length - 1, sequence.request.feed_end(sequence))

    def _ahead(self, sequence: Sequence) -> bytes:
        """Tokens of the page at whose border the sequence stands, without those that it must compute."""
        return packed(sequence, sequence.past, min(sequence.past + self._size, self._end(sequence)))

    def _skip(self, sequence: Sequence, tokens: int) -> None:
        sequence.past += tokens
        sequence.request.reused += tokens
        sequence.request.account.reused += tokens
        self.hits += tokens

    # ---- invariants

    def check(self) -> None:
        request, path = self._walked
        known = [node for node in path if self._cache.has(node)]
        assert known == path[: len(known)], "a page is remembered that follows one that is gone"
        if request is not None and request.live and known:
            tokens = packed(request.live[0], 0, len(known) * self._size)
            walk = self._cache.walk(self._cache.root(request.salt), tokens)
            assert walk == known, "a path is remembered that the tree does not have"


def packed(sequence: Sequence, start: int, end: int) -> bytes:
    """Tokens start … end−1 of its history as the prefix cache takes them."""
    return array("i", sequence.history(start, end)).tobytes()
