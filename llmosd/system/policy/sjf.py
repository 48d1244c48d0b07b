from __future__ import annotations

from llmosd.system.policy.policy import RankedPolicy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request


class Sjf(RankedPolicy):
    """Shortest job first: by the service that prompt and predicted output will take. Long ones may wait for ever.

    Of all orders that do not preempt it has the least mean waiting time, as far as the predictions are right.
    """

    name = "sjf"

    def rank(self, request: Request) -> Rank:
        return (request.foreseen, request.number)
