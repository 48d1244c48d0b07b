from __future__ import annotations

from llmosd.system.policy.policy import RankedPolicy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request

NEVER = 1 << 63


class Edf(RankedPolicy):
    """Earliest deadline first; who has none goes last, by arrival. Nice only says who gives pages up first.

    Where all deadlines can be met it meets them (Liu and Layland 1973); beyond saturation it spends time on those that
    cannot be met any more, and `deadline` ends them.
    """

    name = "edf"

    def rank(self, request: Request) -> Rank:
        deadline = request.spec.deadline
        return (NEVER if deadline is None else deadline, request.number)
