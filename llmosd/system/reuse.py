"""Sequences and the prefix cache: what a sequence need not compute, and what it leaves behind for others.

A sequence in prefill stands at a page border with all pages before it in the tree. There it goes on with the page that
the tree has, or copies the tokens it has in common with one, or lets a request before it compute them first. At least
its last token is always computed: its logits are wanted.
"""

from __future__ import annotations

from array import array

from llmosd.system.pages import PageTable
from llmosd.system.prefix_cache import TOKEN_BYTES, Node, PrefixCache, common_tokens
from llmosd.system.request import Request, Sequence
from llmosd.types import PageCopy, State


class PrefixReuse:
    """Owns no state of its own: the tree is the cache's, a sequence's place in it the sequence's."""

    def __init__(self, table: PageTable, *, remember: bool) -> None:
        self._table = table
        self._pool = table.pool
        self._cache: PrefixCache = table.pool.cache
        self._size = table.page_tokens
        self._remember = remember
        self._worth_copying = max(1, table.page_tokens // 4)  # tokens; fewer are computed as fast
        self.hits = 0  # tokens that were not computed

    # ---- on admission

    def path(self, request: Request) -> list[Node]:
        """Full pages that a waiting request's first live sequence can go on with."""
        if not self._remember:
            return []
        leader = request.live[0]
        end = leader.length - 1 if len(request.live) == 1 else request.prompt_tokens - 1
        return self._cache.walk(self._cache.root(request.salt), _bytes(leader, 0, end))

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
            node = self._cache.find(self._place(sequence), _bytes(sequence, sequence.past, sequence.past + self._size))
            if node is None:
                break
            self.adopt(sequence, [node])
            pages += 1
        return pages

    def partial(self, sequence: Sequence) -> tuple[Node | None, int]:
        """(page, tokens) of the tree worth copying from at the border where the sequence stands."""
        if not self.is_at_border(sequence):
            return None, 0
        node, common = self._cache.closest(self._place(sequence), self._ahead(sequence))
        return (node, common) if common >= self._worth_copying else (None, 0)

    def take(self, sequence: Sequence, node: Node, common: int, target: int) -> PageCopy:
        """Fill the page `target`, the last of the sequence's row, with the tokens in common."""
        self._pool.hold(node.page)
        self._skip(sequence, common)
        return PageCopy(node.page, target)

    def is_computing(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether `other`, in prefill as well, computes the page at whose border `sequence` stands, or enough of it."""
        if other.node is not sequence.node or other.request.salt != sequence.request.salt:
            return False
        start = sequence.past
        theirs = _bytes(other, start, min(start + self._size, other.length))
        return common_tokens(self._ahead(sequence), theirs) >= self._worth_copying

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
        tokens = _bytes(sequence, column * self._size, (column + 1) * self._size)
        parent, page = self._place(sequence), self._table.page(sequence.row, column)
        known = self._cache.find(parent, tokens)
        if known is None or known.page != page:
            if (tail := self._cache.node_of(page)) is not None:
                self._cache.forget(tail)
            if known is None:
                known = self._cache.insert(parent, tokens, page)
            else:
                self._table.replace(sequence.row, column, known.page)
        sequence.node = known

    def _enter_tail(self, sequence: Sequence) -> None:
        """The tokens after the last full page, unless another page has them or other sequences write to this one."""
        start = sequence.past // self._size * self._size
        if start == sequence.past:
            return
        tokens, page = _bytes(sequence, start, sequence.past), self._table.page(sequence.row, start // self._size)
        if (tail := self._cache.node_of(page)) is not None:
            tail.tokens = tokens
        elif self._pool.references(page) == 1:
            _, common = self._cache.closest(self._place(sequence), tokens)
            if common * TOKEN_BYTES < len(tokens):
                self._cache.insert(self._place(sequence), tokens, page)

    # ---- small things

    def _place(self, sequence: Sequence) -> Node:
        return sequence.node or self._cache.root(sequence.request.salt)

    def _end(self, sequence: Sequence) -> int:
        """How far a sequence can do without computing."""
        return min(sequence.length - 1, sequence.request.feed_end(sequence))

    def _ahead(self, sequence: Sequence) -> bytes:
        """Tokens of the page at whose border the sequence stands, without those that it must compute."""
        return _bytes(sequence, sequence.past, min(sequence.past + self._size, self._end(sequence)))

    def _skip(self, sequence: Sequence, tokens: int) -> None:
        sequence.past += tokens
        sequence.request.reused += tokens
        sequence.request.account.reused += tokens
        self.hits += tokens


def _bytes(sequence: Sequence, start: int, end: int) -> bytes:
    return array("i", sequence.history(start, end)).tobytes()
