from __future__ import annotations

from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request


class Fcfs(RankedQueue):
    """First come, first served: by arrival, whatever the nice value."""

    name = "fcfs"

    def rank(self, request: Request) -> Rank:
        return (request.number,)
