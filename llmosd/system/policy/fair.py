"""Fair shares of service between users: weighted virtual token counters (VTC; Sheng et al., OSDI 2024).

Each user has a counter of the service it got, in nanoseconds: tokens times price over weight. The waiting user with
the lowest counter goes next. What a prompt will cost is pledged when its request is admitted, and given back as far
as it turned out to be cached; tokens computed again cost nothing. The weight of a request is its user's times
1.25^−nice, so that one step of nice is a quarter more or less, as with Linux. A user that had nothing waiting is
lifted to the lowest counter of those that have, less a credit of two quanta: nobody saves up, and who comes back is
served soon.

*Without preemption* (VTC's theorem, weighted). Let U = max over users of max(w_p·L, w_q·M) / weight, L the longest
prompt, M the tokens of the pool. At each admission the user had the lowest counter c of those that wait. Its pledge
lifts it by w_p·L / weight at most, and until it is admitted again, what it has running can sample at most M tokens.
So the counters of users that wait stay within U of each other, and what two of them are given while both do differs
by 2·U at most. The credit makes that 2·U + credit for an interval that begins with the arrival of one of them.

*With preemption.* Requests that give way are charged nothing for coming back, and admissions are the same, so all of
this stands. What is new: while the lowest waiting user finds no room, the newest request of the highest running one
gives way as soon as the gap exceeds a quantum q, and the request has gained a quantum since it was admitted. From the
moment when the gap passes q + credit, each of its requests gains a quantum and a step's token at most before it gives
way, one after the other, as long as the room for prompts in a step is not spoken for. So the gap of counters is
bounded, whatever the pool, by G = (w_p·L + q·(slots + 2) + w_q·slots) / least weight, and the difference in service
by 2·G.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace

from llmosd.system.policy.policy import Policy, Rules
from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request

SCALE = 1.25
KEPT = 256  # users whose counters are kept although they have nothing waiting or running, before any is forgotten


def _seat(request: Request) -> Rank:
    return (request.nice, request.number)


@dataclass(slots=True, eq=False)
class Share:
    """One user's part."""

    serial: int
    counter: int = 0
    queued: RankedQueue = field(default_factory=lambda: RankedQueue(_seat))
    running: int = 0

    @property
    def idle(self) -> bool:
        return not self.running and not len(self.queued)


@dataclass(slots=True, eq=False)
class Pledge:
    """Tokens of a prompt that are charged already, at this price each, and not computed yet."""

    tokens: int
    price: int


class Fair(Policy):
    """The user with the lowest counter goes next, and may take the slot of the one with the highest."""

    name = "fair"
    moves = True
    preempts = True

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self._shares: dict[str, Share] = {}
        self._heap: list[tuple[int, int, str]] = []  # (counter, serial, user) of all that wait, at that time or before
        self._pledged: dict[Request, Pledge] = {}  # of those that run and have not sampled a token
        self._floor = 0  # the lowest counter of those that waited, at its highest: it never falls
        self._waiting = 0
        self._serial = 0

    # ---- order

    def rank(self, request: Request) -> Rank:
        share = self._shares.get(request.spec.user) or Share(0, self._floor)  # of one that stands still
        return (share.counter, share.serial, request.nice, request.number)

    def seat(self, request: Request) -> Rank:
        return _seat(request)

    def grade(self, request: Request) -> Rank:
        return self.rank(request)

    # ---- queue

    def __len__(self) -> int:
        return self._waiting

    def add(self, request: Request) -> None:
        share = self._share(request)
        if not len(share.queued):
            self._lift(share)
            heappush(self._heap, (share.counter, share.serial, request.spec.user))
        share.queued.add(request)
        self._waiting += 1

    def _lift(self, share: Share) -> None:
        """It has something waiting from now on."""
        if lowest := self._lowest():
            self._floor = max(self._floor, lowest.counter)
        share.counter = max(share.counter, self._floor - 2 * self._quantum)

    def remove(self, request: Request) -> None:
        share = self._shares[request.spec.user]
        share.queued.remove(request)
        self._waiting -= 1
        if not self._waiting:
            self._floor = max(self._floor, share.counter)
        self._compact()

    def head(self) -> Request | None:
        lowest = self._lowest()
        return lowest.queued.head() if lowest else None

    def _lowest(self) -> Share | None:
        """Of those that wait. Counters mostly grow: an entry of the heap is put right when it comes to the top."""
        heap = self._heap
        while heap:
            counter, serial, user = heap[0]
            share = self._shares.get(user)
            if share is None or share.serial != serial or not len(share.queued) or counter > share.counter:
                heappop(heap)  # an older one, or of a user that has nothing waiting any more
            elif counter < share.counter:
                heapreplace(heap, (share.counter, serial, user))
            else:
                return share
        return None

    def position(self, request: Request) -> int:
        own = self._shares.get(request.spec.user)
        if own is None:
            return self._waiting
        key = (own.counter, own.serial)
        before = sum(len(share.queued) for share in self._shares.values() if (share.counter, share.serial) < key)
        return before + own.queued.position(request)

    # ---- those that run

    def displaces(self, head: Request, running: Request) -> bool:
        one, other = self._shares[running.spec.user], self._shares[head.spec.user]
        return one.counter - other.counter > self._quantum

    def protects(self, running: Request) -> bool:
        return running.preemptions > 0 and running.gain < self._quantum

    # ---- what happens

    def admit(self, request: Request) -> None:
        share, tokens = self._share(request), request.prompt_tokens - request.computed
        share.running += 1
        pledge = self._pledged[request] = Pledge(tokens, self._price(request, 1, 0))
        share.counter += pledge.tokens * pledge.price

    def leave(self, request: Request) -> None:
        self._redeem(request)
        self._shares[request.spec.user].running -= 1

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        if pledge := self._pledged.get(request):
            pledge.tokens -= prompt_tokens
        if output_tokens:
            self._redeem(request)
            self._shares[request.spec.user].counter += self._price(request, 0, output_tokens)

    def _redeem(self, request: Request) -> None:
        """Give back what was pledged for tokens that need not be computed, or not now."""
        pledge = self._pledged.pop(request, None)
        if pledge and pledge.tokens:
            share = self._shares[request.spec.user]
            share.counter -= pledge.tokens * pledge.price
            if len(share.queued):
                heappush(self._heap, (share.counter, share.serial, request.spec.user))

    def _price(self, request: Request, prompt_tokens: int, output_tokens: int) -> int:
        weight = request.account.weight * SCALE**-request.nice
        return max(1, round(self.rules.prices.cost(prompt_tokens, output_tokens) / weight))

    @property
    def _quantum(self) -> int:
        return self.rules.prices.cost(0, self.rules.quantum)

    # ---- who is known

    def _share(self, request: Request) -> Share:
        user = request.spec.user
        if (share := self._shares.get(user)) is None:
            self._serial += 1
            share = self._shares[user] = Share(self._serial)
        return share

    def _compact(self) -> None:
        """Forget users that are idle and not ahead of the others: when they come back they are lifted anyway."""
        if len(self._shares) > 2 * KEPT or len(self._heap) > 2 * len(self._shares) + KEPT:
            least = self._floor - 2 * self._quantum
            gone = [user for user, share in self._shares.items() if share.idle and share.counter <= least]
            for user in gone:
                del self._shares[user]
            waiting = [(user, share) for user, share in self._shares.items() if len(share.queued)]
            self._heap = sorted((share.counter, share.serial, user) for user, share in waiting)

    def counters(self) -> dict[str, int]:
        """Of each user that is known, what it has been charged and has pledged."""
        return {user: share.counter for user, share in self._shares.items()}

    def check(self) -> None:
        for share in self._shares.values():
            share.queued.check()
        assert self._waiting == sum(len(share.queued) for share in self._shares.values()), "a request is miscounted"
        assert all(pledge.tokens >= 0 for pledge in self._pledged.values()), "more was computed than was pledged"
        listed = set(self._heap)
        for user, share in self._shares.items():
            entries = [counter for counter, serial, name in listed if (serial, name) == (share.serial, user)]
            assert not len(share.queued) or min(entries) <= share.counter, f"{user} waits unseen"
