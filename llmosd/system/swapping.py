"""Requests out of the pool and back: what they hold goes to the swap space, and into other pages later.

On the way back the pages that the prefix cache still has are taken from there, and the rest is read. The request keeps
its row meanwhile and is not fed. Where a page could not be read, or not be written before, what is behind it in the
sequence is computed again.
"""

from __future__ import annotations

from llmosd.system.eviction import Eviction
from llmosd.system.limits import Limits
from llmosd.system.pager import Pager
from llmosd.system.pages import PageTable
from llmosd.system.prefix_cache import Node
from llmosd.system.request import Request
from llmosd.system.reuse import PrefixReuse
from llmosd.types import Event, Evicted, Nanoseconds, State, SwapFailed


class Swapping:
    """Owns no state of its own: transfers are the pager's, accounts the eviction's, images the requests'."""

    def __init__(self, limits: Limits, table: PageTable, reuse: PrefixReuse, pager: Pager, eviction: Eviction) -> None:
        self._limits = limits
        self._table = table
        self._reuse = reuse
        self.pager = pager
        self.eviction = eviction

    def evict(self, request: Request, now: Nanoseconds) -> Evicted:
        """Decide what becomes of its pages and set that off; its rows are to be released then."""
        decision = self.eviction.decide(request, now)
        if decision.way == "swap":
            request.image = self.pager.page_out(request)
        return decision

    def forget(self, request: Request) -> None:
        """It has ended."""
        if request.image:
            self.pager.drop(request.image)
            request.image, request.returning = None, False
        self.eviction.forget(request)

    def full_pages(self, request: Request) -> int:
        """How many pages of its first sequence, from the first one on, hold nothing but what the image has."""
        assert request.image is not None
        return request.image.past[request.live[0].id] // self._limits.page_tokens

    def bring_in(self, request: Request, path: list[Node]) -> None:
        """Fill the empty rows: with the pages of `path`, and with free ones that are to be read."""
        image = request.image
        assert image is not None
        for sequence in request.live if request.forked else request.live[:1]:
            for node in path:
                self._table.adopt(sequence.row, node.page)
                sequence.node = node
            sequence.past = len(path) * self._limits.page_tokens
        self.pager.page_in(image, request, len(path))
        request.returning = bool(image.under_way)

    def reported(self, request: Request, now: Nanoseconds) -> list[Event]:
        """All transfers under way are reported; an image that is not whole is only good for a request in return."""
        image = request.image
        assert image is not None
        self.eviction.transferred(request, image.ns, image.errors.values())
        image.ns = 0
        if not image.errors:
            return []
        if not request.returning:
            self.pager.drop(image)
            request.image = None
        return [SwapFailed(request.id, image.inward, len(image.errors), image.error, now)]

    def restore(self, request: Request) -> tuple[State, bool]:
        """Let the sequences go on from the pages that came in: the state in which they do, whether nothing is lost."""
        image = request.image
        assert image is not None
        state, size = image.state, self._limits.page_tokens
        good = {sequence.id: image.good(sequence.id) for sequence in request.live}
        if image.errors:
            state = State.PREFILL
            if len(request.live) > 1:
                self._unfork(request, good)
        for sequence in request.live:
            self._table.cut(sequence.row, good[sequence.id])
            sequence.past = min(image.past[sequence.id], good[sequence.id] * size)
            self._reuse.settle(sequence)
        self.pager.drop(image)
        request.image, request.returning = None, False
        return state, not image.errors

    def _unfork(self, request: Request, good: dict[int, int]) -> None:
        """The first sequence keeps what is good of the prompt, and the others fork from it again."""
        leader, *others = request.live
        good[leader.id] = min(good[leader.id], self._limits.shared_pages(request.prompt_tokens))
        for sequence in others:
            good[sequence.id], sequence.node = 0, None
        request.forked = False
