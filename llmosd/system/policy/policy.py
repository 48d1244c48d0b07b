"""What a policy is: an order of the requests that wait, and a say in who of those that run has to give way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from llmosd.system.costs import Prices
from llmosd.system.limits import Limits
from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request
from llmosd.types import Nanoseconds

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What policies are told: a policy takes from it what concerns it.

    A request that waits longer than `starve_after` (0: never) is starving, and those that are have a `starve_share` of
    each step. `quantum` is the service (tokens of output) that a user may be ahead of another, and that a request gains
    before it may have to give way again. `slo_ttft` and `slo_itl` are what dynamic tries to keep.
    """

    prices: Prices = field(default_factory=Prices)
    starve_after: Nanoseconds = 10 * SECOND
    starve_share: float = 0.25
    quantum: int = 128
    slo_ttft: Nanoseconds = 2 * SECOND
    slo_itl: Nanoseconds = 200_000_000


class Policy(ABC):
    """The waiting requests in its order; no operation that planning needs may scan or sort them.

    Requests that run are known to it between `admit` and `leave`. The time is that of the last `advance`.
    """

    name: str
    moves = False  # ranks change with time or service; else only between remove and add
    preempts = False  # `displaces` may be true
    share = 0.0  # of a step's tokens for prompts: kept for those that are `starving`
    chunk: int | None = None  # tokens of prompts in a step, at most
    cap: int | None = None  # sequences that run at once, at most

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.now: Nanoseconds = 0

    # ---- order

    @abstractmethod
    def rank(self, request: Request) -> Rank:
        """Smaller goes first; unique. Of those that run the last ones give their pages up to the first ones."""

    def seat(self, request: Request) -> Rank:
        """Its rank among waiting requests of the same user, which never moves while it waits."""
        return self.rank(request)

    def grade(self, request: Request) -> Rank:
        """Of requests that run the greatest grade gives way first; within one, whoever loses least."""
        return (request.nice,)

    def urgency(self, request: Request) -> Rank:
        """Comparable with that of requests of other models: smaller goes first, equals share."""
        return ()

    # ---- queue

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def add(self, request: Request) -> None: ...

    @abstractmethod
    def remove(self, request: Request) -> None: ...

    @abstractmethod
    def head(self) -> Request | None:
        """The request to admit next. It stays in the queue until removed, and nothing overtakes it."""

    @abstractmethod
    def position(self, request: Request) -> int:
        """Place in the queue from 1, by rank; of one that is not in it, how many are before it."""

    # ---- those that run

    def displaces(self, head: Request, running: Request) -> bool:
        """Whether the head may take slot and pages of one that runs; if not, of none that ranks before it either.

        Those in decode give way that have gained a token, and that the policy does not `protect`.
        """
        return False

    def protects(self, running: Request) -> bool:
        """Whether it gives way to no head yet."""
        return False

    def starving(self, request: Request) -> bool:
        return False

    def waits_for(self, request: Request) -> str:
        """What else there is to say of a waiting request, in words."""
        return ""

    # ---- what happens

    def begin(self, limits: Limits, now: Nanoseconds) -> None:
        """It is in charge from now on, of a kernel with these limits."""
        self.now = now

    def advance(self, now: Nanoseconds) -> None:
        """Before a plan or a command."""
        self.now = now

    def admit(self, request: Request) -> None:
        """It has left the queue to run."""
        return

    def leave(self, request: Request) -> None:
        """It runs no more: it has ended, or waits or stands still."""
        return

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        """A step has computed so many tokens of its prompt for the first time, and sampled so many."""
        return

    def forget(self, request: Request) -> None:
        """It has ended, and does not run or wait any more."""
        return

    def observe(self, took: Nanoseconds, room: int, pressure: float) -> None:
        """A step took so long and had room for so many tokens of prompts, used or not; 0 if there were none.

        `pressure` is the share of the pool's pages that were not to be had.
        """
        return

    def take_changes(self) -> list[tuple[str, str, str]]:
        """(what it did, what it does, why) for each change of its own since this was asked last."""
        return []

    @abstractmethod
    def check(self) -> None: ...


class RankedPolicy(Policy):
    """One whose waiting requests keep their ranks."""

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self._queue = RankedQueue(self.rank)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, request: Request) -> None:
        self._queue.add(request)

    def remove(self, request: Request) -> None:
        self._queue.remove(request)

    def head(self) -> Request | None:
        return self._queue.head()

    def position(self, request: Request) -> int:
        return self._queue.position(request)

    def check(self) -> None:
        self._queue.check()
