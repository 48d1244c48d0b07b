"""K and V of a suspended request out of one kernel's pages and into another's, by way of the prefix cache.

Full pages only, and only into pages that hold nothing: what else is missing is computed again, as after a preemption.
"""

from __future__ import annotations

from llmosd.system.costs import Costs
from llmosd.system.pages import PagePool
from llmosd.system.prefix_cache import Node
from llmosd.system.request import Request, Sequence
from llmosd.system.reuse import packed
from llmosd.system.snapshot import KeptPages


class Transplants:
    """Between steps only. Owns no state of its own."""

    def __init__(self, pool: PagePool, page_tokens: int, costs: Costs, *, remember: bool) -> None:
        self._pool = pool
        self._cache = pool.cache
        self._size = page_tokens
        self._costs = costs
        self._remember = remember

    def held(self, request: Request) -> tuple[KeptPages, tuple[int, ...]]:
        """What the cache has of its history, and the pages in which it is; nothing where computing it is cheaper."""
        numbers = dict[int, int]()  # by page
        columns = tuple(
            tuple(numbers.setdefault(node.page, len(numbers)) for node in self._path(sequence))
            for sequence in request.live
        )
        pages = len(numbers)
        compute_s = self._costs.prefill.seconds(pages * self._size, 0)
        if not pages or compute_s <= self._costs.transfer.seconds(pages, pages):
            return KeptPages(self._size, 0, ()), ()
        return KeptPages(self._size, pages, columns), tuple(numbers)

    def plant(self, request: Request, kept: KeptPages) -> list[tuple[int, int]]:
        """(number in `kept`, page) of what is to be written before the next step; the pages are idle."""
        planted = list[tuple[int, int]]()
        if self._remember and kept.page_tokens == self._size:
            for sequence, numbers in zip(request.live, kept.columns, strict=False):
                planted += self._plant(sequence, numbers)
        return planted

    def _plant(self, sequence: Sequence, numbers: tuple[int, ...]) -> list[tuple[int, int]]:
        planted, node = list[tuple[int, int]](), self._root(sequence)
        for column, number in enumerate(numbers[: sequence.length // self._size]):
            tokens = packed(sequence, column * self._size, (column + 1) * self._size)
            known = self._cache.find(node, tokens)
            if known is None:
                if not self._pool.blank:
                    break
                page = self._pool.draw()
                known = self._cache.insert(node, tokens, page)
                self._pool.drop(page)
                planted.append((number, page))
            node = known
        return planted

    def _path(self, sequence: Sequence) -> list[Node]:
        return self._cache.walk(self._root(sequence), packed(sequence, 0, sequence.length))

    def _root(self, sequence: Sequence) -> Node:
        return self._cache.root(sequence.request.salt)
