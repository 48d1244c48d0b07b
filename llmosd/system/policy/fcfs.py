from __future__ import annotations

from llmosd.system.policy.policy import RankedPolicy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request


class Fcfs(RankedPolicy):
    """First come, first served: by arrival, whatever the nice value. Nice only says who gives pages up first."""

    name = "fcfs"

    def rank(self, request: Request) -> Rank:
        return (request.number,)
