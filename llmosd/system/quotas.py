"""Who is over quota waits aside: a queue in a policy's order without those that their user's quota keeps from running.

They are parked on a wait list of their user's own, found when they would be next, and come back one by one when the
user holds less, so that nobody behind them is delayed and no step looks at them. Among the requests of one user the
policy's order stands: whoever ranks behind a parked one of the same user is parked too, so that small requests cannot
starve a large one.

A quota counts what running requests hold and are promised, at every moment, and is a pool within the pool: growth
beyond it takes the pages of the user's own lowest-ranked request. So the proof of progress (`scheduler.py`) holds: a
user of whom nothing runs is never over quota, for `submit` refuses what, alone, exceeds it; and the top-ranked of those
that run has all others of its user for possible victims.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmosd.system.accounts import Account, Accounts
from llmosd.system.limits import Limits
from llmosd.system.policy.classes import ClassQueue
from llmosd.system.policy.policy import Policy
from llmosd.system.policy.ranked import RankedQueue
from llmosd.system.request import Request
from llmosd.types import Nanoseconds


class QuotaQueue:
    """A policy around another one. Its `head` may be admitted as far as quotas go; its length counts the parked too."""

    def __init__(self, policy: Policy, accounts: Accounts, limits: Limits, now: Nanoseconds = 0) -> None:
        self._accounts = accounts
        self._limits = limits
        self._tokens = 0  # of all that wait
        self._parked_tokens = 0  # of these, of those that are parked
        self._parked: dict[Request, None] = {}
        self._lines: dict[Account, RankedQueue] = {}  # the parked, of each user that has some
        self._install(policy, now)

    def _install(self, policy: Policy, now: Nanoseconds) -> None:
        self._policy = queue = ClassQueue(policy)
        queue.begin(self._limits, now)
        self.name, self.moves, self.share, self.rules = queue.name, queue.moves, queue.share, queue.rules
        self.rank, self.grade, self.urgency = queue.rank, queue.grade, queue.urgency
        self.displaces, self.protects, self.starving = queue.displaces, queue.protects, queue.starving
        self.advance, self.admit, self.leave = queue.advance, queue.admit, queue.leave
        self.charge, self.forget, self.observe = queue.charge, queue.forget, queue.observe
        self.take_changes = queue.take_changes

    def switch(self, policy: Policy, waiting: Iterable[Request], running: Iterable[Request], now: Nanoseconds) -> None:
        """Another policy orders them from now on; all that wait, in the order of arrival, and all that run."""
        for request in tuple(self._parked):
            self._unpark(request)
        self._install(policy, now)
        self._tokens = 0
        for request in waiting:
            self.add(request)
        for request in running:
            self.admit(request)

    @property
    def preempts(self) -> bool:
        return self._policy.preempts

    @property
    def chunk(self) -> int | None:
        return self._policy.chunk

    @property
    def cap(self) -> int | None:
        return self._policy.cap

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def ready(self) -> int:
        """Those that no quota holds up."""
        return len(self._policy)

    def __len__(self) -> int:
        return len(self._policy) + len(self._parked)

    def backlog(self, user: str) -> tuple[int, int]:
        """Requests that wait already where a new one of the user would have to, and the tokens that they have and may
        generate: those parked of others do not.
        """
        account = self._accounts.find(user)
        requests, tokens = (len(self._lines.get(account, ())), account.parked_tokens) if account else (0, 0)
        return len(self._policy) + requests, self._tokens - self._parked_tokens + tokens

    def add(self, request: Request) -> None:
        self._tokens += request.size
        if self._is_blocked(request):
            self._park(request)
        else:
            self._policy.add(request)

    def remove(self, request: Request) -> None:
        self._tokens -= request.size
        if request in self._parked:
            self._unpark(request)
        else:
            self._policy.remove(request)
        self._accounts.ease(request.account)  # the next one parked behind it may go on

    def head(self) -> Request | None:
        """The first one that its user's quota lets run; those before it are parked."""
        for account in self._accounts.take_eased():
            if line := self._lines.get(account):
                best = line.head()
                assert best is not None
                self._unpark(best)
                self._policy.add(best)
        while (request := self._policy.head()) is not None and self._is_blocked(request):
            self._policy.remove(request)
            self._park(request)
        return request

    def position(self, request: Request) -> int:
        """Its place among all that wait, parked or not."""
        position = self._policy.position(request)
        if self._parked:
            rank = self.rank(request)
            position += sum(self.rank(other) <= rank for other in self._parked)
        return position

    def waits_for(self, request: Request) -> str:
        """Why a request is parked, or what else the policy has to say of it."""
        if request not in self._parked:
            return self._policy.waits_for(request)
        lack = request.account.lacks(request.demand(self._limits))
        return f"quota: {lack or 'others of this user go first'}"

    def _is_blocked(self, request: Request) -> bool:
        account = request.account
        if not account.is_limited:
            return False
        line = self._lines.get(account)
        first = line.head() if line else None
        if first is not None and self._policy.seat(first) < self._policy.seat(request):
            return True
        return bool(account.lacks(request.demand(self._limits)))

    def _park(self, request: Request) -> None:
        self._parked[request] = None
        self._lines.setdefault(request.account, RankedQueue(self._policy.seat)).add(request)
        self._count_parked(request, request.size)
        request.wait.park(self._accounts.now)

    def _unpark(self, request: Request) -> None:
        line = self._lines[request.account]
        line.remove(request)
        del self._parked[request]
        if not len(line):
            del self._lines[request.account]
        self._count_parked(request, -request.size)
        request.wait.unpark(self._accounts.now)

    def _count_parked(self, request: Request, tokens: int) -> None:
        self._parked_tokens += tokens
        request.account.parked_tokens += tokens

    def check(self) -> None:
        self._policy.check()
        for line in self._lines.values():
            line.check()
        assert all(map(len, self._lines.values())), "an empty wait list is kept"
        parked = {request for line in self._lines.values() for request in line}
        assert parked == self._parked.keys(), "wait lists do not add up"
        tokens = sum(account.parked_tokens for account in self._lines)
        assert tokens == self._parked_tokens == sum(request.size for request in parked), "parked tokens do not add up"
