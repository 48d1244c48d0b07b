from __future__ import annotations

from math import log2

from llmosd.system.policy.policy import Policy, Rules
from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request
from llmosd.types import Nanoseconds

STEPS = 4  # classes of service an octave


class Hrrn(Policy):
    """Highest response ratio next: (waited + service) / service, service by prediction. Short ones first, long ones
    rise with time, so that none waits for ever.

    Ratios move at different speeds, so no order of all lasts. But among requests of equal service the oldest has the
    greatest ratio, always: predictions are rounded to classes, 2^(1/4) apart, each with a queue by arrival, and
    planning compares the heads of those (at most 4 · log₂ of the longest service over the shortest).
    """

    name = "hrrn"
    moves = True

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self._lanes: dict[int, RankedQueue] = {}  # by class of service; none is empty

    def rank(self, request: Request) -> Rank:
        return (-self._ratio(request), request.number)

    def seat(self, request: Request) -> Rank:
        return (request.number,)

    def _ratio(self, request: Request) -> int:
        """In thousandths."""
        return 1000 * (self.now - request.submitted) // _service(_class(request))

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def add(self, request: Request) -> None:
        self._lanes.setdefault(_class(request), RankedQueue(self.seat)).add(request)

    def remove(self, request: Request) -> None:
        lane = self._lanes[_class(request)]
        lane.remove(request)
        if not len(lane):
            del self._lanes[_class(request)]

    def head(self) -> Request | None:
        heads = [request for lane in self._lanes.values() if (request := lane.head())]
        return min(heads, key=self.rank, default=None)

    def position(self, request: Request) -> int:
        rank = self.rank(request)
        return sum(lane.count(lambda other: self.rank(other) <= rank) for lane in self._lanes.values())

    def check(self) -> None:
        for lane in self._lanes.values():
            lane.check()
            assert len(lane), "an empty class is kept"


def _class(request: Request) -> int:
    return round(STEPS * log2(max(1, request.foreseen)))


def _service(number: int) -> Nanoseconds:
    """What requests of a class are taken to need."""
    return round(2 ** (number / STEPS))
