"""A page pool as it is at one moment: its pages by state, what of them is wasted, and a map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Many
from itertools import pairwise

from llmosd.system.pager import Pager
from llmosd.system.pages import PageTable
from llmosd.system.prefix_cache import common_tokens
from llmosd.system.request import NO_ROW, Request, Sequence
from llmosd.system.reuse import PrefixReuse
from llmosd.types import PageState, PoolView

MAP_LIMIT = 256  # codes of a map


def look(model: str, table: PageTable, reuse: PrefixReuse, pager: Pager, requests: Iterable[Request]) -> PoolView:
    """In O(pages). Between steps only; `requests` are the live ones."""
    pool = table.pool
    arriving = [page for page in pager.inward() if pool.references(page)]
    swapped = sum(request.image is not None for request in requests)
    sequences = [s for request in requests if not request.returning for s in request.live if s.row != NO_ROW]
    drawn, pages_per_code = pool_map(pool.states(arriving))
    return PoolView(
        model=model,
        page_tokens=table.page_tokens,
        total=pool.total,
        used=pool.used - pool.leaving,
        shared=pool.shared,
        arriving=len(arriving),
        leaving=pool.leaving,
        beyond=pool.beyond,
        cached=pool.idle,
        reserved=pool.reserved,
        unfilled=unfilled(table, sequences),
        duplicate=duplicate(table, reuse, sequences) if reuse.remembers else None,
        map=drawn,
        pages_per_code=pages_per_code,
        slots=pager.space.total,
        slots_used=pager.space.used,
        swapped=swapped,
    )


def unfilled(table: PageTable, sequences: Iterable[Sequence]) -> int:
    """Places after the last token: Σ(−length mod page), a last page that siblings still share counted once."""
    size = table.page_tokens
    return sum({table.last_page(s.row): -s.past % size for s in sequences if s.past}.values())


def duplicate(table: PageTable, reuse: PrefixReuse, sequences: Many[Sequence]) -> int:
    """Tokens in pages in use whose K and V another page in use has too, each copy but one.

    No two full pages are alike, for the prefix cache merges them. But pages that follow the same one may begin alike.
    Sorted, each shares most with the one before it, and what goes beyond that is in no other.
    """
    families = defaultdict[bytes, dict[int, bytes]](dict)  # of each page, by its key: tokens of those that follow it
    for sequence in sequences:
        if sequence.past % table.page_tokens:
            families[reuse.place(sequence).key][table.last_page(sequence.row)] = reuse.tail(sequence)
    seen = set[int]()
    for sequence in sequences:
        node = reuse.place(sequence)
        while node.parent is not None and node.page not in seen:
            seen.add(node.page)
            if len(node.parent.children) > 1 or node.parent.key in families:
                families[node.parent.key][node.page] = node.tokens
            node = node.parent
    texts = (sorted(family.values()) for family in families.values())
    return sum(common_tokens(one, other) for ordered in texts for one, other in pairwise(ordered))


def pool_map(states: bytes) -> tuple[str, int]:
    """(codes, pages that each stands for): a state a page, or the commonest of so many that the map stays short."""
    size = max(1, -(-len(states) // MAP_LIMIT))
    return "".join(_commonest(states[start : start + size]) for start in range(0, len(states), size)), size


def _commonest(states: bytes) -> str:
    return max(_STATES, key=lambda state: states.count(ord(state)))


_STATES: Many[PageState] = tuple(PageState)
