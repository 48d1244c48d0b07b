from __future__ import annotations

from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request


class Priority(RankedQueue):
    """Lower nice values first, equals by arrival."""

    name = "priority"

    def rank(self, request: Request) -> Rank:
        return (request.nice, request.number)
