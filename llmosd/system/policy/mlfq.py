from __future__ import annotations

from llmosd.system.policy.policy import RankedPolicy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request

LEVELS = 8


class Mlfq(RankedPolicy):
    """Multi-level feedback queue with skip-join (FastServe, Wu et al. 2023): short requests first, lengths unknown.

    Level i is for service up to 2^i quanta. A request joins at the level its prompt alone belongs to, and sinks as it
    is served; the head may take the slot of a request on a lower level. Within a level: first come, first served.
    """

    name = "mlfq"
    moves = True
    preempts = True

    def rank(self, request: Request) -> Rank:
        return (self.level(request), request.number)

    def grade(self, request: Request) -> Rank:
        return (self.level(request),)

    def displaces(self, head: Request, running: Request) -> bool:
        return self.level(running) > self.level(head)

    def level(self, request: Request) -> int:
        prices = self.rules.prices
        service = max(request.service, prices.cost(request.prompt_tokens, 0))
        quanta = service // max(1, prices.cost(0, self.rules.quantum))
        return min(quanta.bit_length(), LEVELS - 1)
