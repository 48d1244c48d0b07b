"""By nice value, and a starvation tier that bounds how long anybody waits.

Who has waited longer than T (`starve_after`) enters the tier and stays in it to its end. The tier is served first
come, first served, beside the others: it is entitled to a share s (`starve_share`) of the slots, k = max(1,
⌊s·slots⌋), and of each step's tokens for prompts, and gets no more while others want them, so that a long queue does
not turn priority into FCFS. While less of it runs, and all of that fits the pool to its end, its first one goes
before all others and takes what it lacks from the lowest ranked in decode. Who runs in the tier gives way to nobody.

*The bound.* Let a step have at least R tokens for prompts, L = s·R of them for the tier. Take a request that enters
it, and those ahead of it, waiting or running: prompts P_i, n_i sequences of at most M_i tokens, pages they need to
their end. Until it runs, each step is of one of these kinds:

- The tier feeds prompts, L tokens or all that is left of them: Σ (P_i / L + 1) steps at most.
- It feeds none, and its first one does not enter because enough of it runs: more than k − n_max sequences, or as many
  requests as the pool holds of the largest one. Let c be the lesser. Each gains a token: Σ n_i·M_i / c steps.
- Its first one waits for others that were promised pages for their next token and have not gained it, so that they
  cannot give way. Nobody else enters meanwhile, so what they still compute fits the pool, and they have all R tokens:
  pool / R + 1 steps, for each one ahead and for itself.

The sum, in steps no longer than the longest so far, is computed when it enters, and kept. It is finite, for the queue
is bounded: T + tokens ahead / (s · measured rate), prompts and outputs each at their own rate. Not in it are waits
for the disk and for other models, what a person does, and the quota of its own user.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

from llmosd.system.limits import Limits
from llmosd.system.policy.policy import SECOND, Policy, Rules
from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request
from llmosd.types import Nanoseconds

MOVED = 32  # requests that enter the tier before one plan; no more could be admitted in it


@dataclass(frozen=True, slots=True)
class Starving:
    """A request in the tier: its place, when it runs at the latest, and the steps it may take of those behind it."""

    ticket: int
    bound: Nanoseconds
    prompt: int  # tokens
    output: int


class Priority(Policy):
    """Lower nice values first, equals by arrival; none waits longer than its bound."""

    name = "priority"
    preempts = True

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self.share = self.rules.starve_share
        self._main = RankedQueue(self.rank)
        self._tier = RankedQueue(self.rank)
        self._starving: dict[Request, Starving] = {}  # all of the tier
        self._running: dict[Request, None] = {}  # of these
        self._since: dict[Request, Nanoseconds] = {}  # of all in the main queue
        self._due: deque[tuple[Nanoseconds, Request]] = deque()  # the same by time, and some that are there no more
        self._ticket = 0
        self._prompts = self._outputs = 0  # tokens of all in the tier
        self._widest = self._largest = 1  # sequences, pages of one of them
        self._slowest: Nanoseconds = 0  # step
        self._least_room = 1 << 31  # tokens for prompts in a step

    # ---- order

    def rank(self, request: Request) -> Rank:
        if starving := self._starving.get(request):
            return (0, 0, starving.ticket)
        return (1, request.nice, request.number)

    def seat(self, request: Request) -> Rank:
        return (request.nice, request.number)

    def grade(self, request: Request) -> Rank:
        return self.rank(request)[:2]

    def urgency(self, request: Request) -> Rank:
        return self.rank(request)[:2]

    # ---- queue

    def __len__(self) -> int:
        return len(self._main) + len(self._tier)

    def add(self, request: Request) -> None:
        if request in self._starving:
            self._tier.add(request)
            return
        self._main.add(request)
        self._since[request] = self.now
        self._due.append((self.now, request))

    def remove(self, request: Request) -> None:
        if request in self._starving:
            self._tier.remove(request)
        else:
            self._main.remove(request)
            del self._since[request]

    def head(self) -> Request | None:
        starving, first = self._tier.head(), self._main.head()
        if starving is None or first is None:
            return starving or first
        return starving if self._is_entitled(starving) else first

    def _is_entitled(self, head: Request) -> bool:
        """Whether the tier has less than its share."""
        if not self._running:
            return True
        rows = sum(len(request.live) for request in self._running)
        pages = sum(request.need(self._limits) for request in self._running)
        return rows + len(head.live) <= self._slots and pages + head.need(self._limits) <= self._limits.pages

    def position(self, request: Request) -> int:
        return self._tier.position(request) + self._main.position(request)

    # ---- those that run

    def displaces(self, head: Request, running: Request) -> bool:
        if running in self._starving:
            return False
        return head in self._starving or running.nice > head.nice

    def starving(self, request: Request) -> bool:
        return request in self._starving

    def waits_for(self, request: Request) -> str:
        if (starving := self._starving.get(request)) is None:
            return ""
        return f"policy: starving, runs within {max(0, starving.bound - self.now) / SECOND:.1f} s"

    # ---- what happens

    def begin(self, limits: Limits, now: Nanoseconds) -> None:
        super().begin(limits, now)
        self._limits = limits
        self._slots = max(1, int(self.share * limits.slots))

    def advance(self, now: Nanoseconds) -> None:
        """Whoever has waited too long enters the tier; those that entered the queue first do so first."""
        self.now = now
        due, latest, moved = self._due, now - (self.rules.starve_after or now), 0
        while due and due[0][0] < latest and moved < MOVED:
            since, request = due.popleft()
            if self._since.get(request) == since:
                self._enter_tier(request)
                moved += 1

    def _enter_tier(self, request: Request) -> None:
        self.remove(request)
        self._widest = max(self._widest, len(request.live))
        self._largest = max(self._largest, request.need(self._limits))
        bound = self.now + self._steps() * self._slowest
        prompt = sum(sequence.length for sequence in request.live)
        output = len(request.live) * request.max_tokens
        self._starving[request] = Starving(self._ticket, bound, prompt, output)
        self._ticket += 1
        self._prompts += prompt
        self._outputs += output
        self._tier.add(request)

    def _steps(self) -> int:
        """Steps, at most, until whoever enters behind all that are in the tier runs."""
        ahead, limits, room = len(self._starving), self._limits, max(1, self._least_room)
        prompts = self._prompts / ceil(self.share * room) + ahead
        together = max(1, min(self._slots - self._widest + 1, limits.pages // self._largest))
        stalls = (ahead + 1) * (limits.pages * limits.page_tokens / room + 1)
        return ceil(prompts + self._outputs / together + stalls)

    def admit(self, request: Request) -> None:
        if request in self._starving:
            self._running[request] = None

    def leave(self, request: Request) -> None:
        self._running.pop(request, None)

    def forget(self, request: Request) -> None:
        if starving := self._starving.pop(request, None):
            self._prompts -= starving.prompt
            self._outputs -= starving.output
        if not self._starving:
            self._widest = self._largest = 1

    def observe(self, took: Nanoseconds, room: int, pressure: float) -> None:
        self._slowest, self._least_room = max(self._slowest, took), min(self._least_room, room or self._least_room)

    def check(self) -> None:
        self._main.check()
        self._tier.check()
        assert all(request in self._starving for request in self._tier), "one in the tier is not known to starve"
        assert self._since.keys() == set(self._main), "waiting times are kept of others than those that wait"
        assert self._running.keys() <= self._starving.keys()
        assert self._prompts == sum(starving.prompt for starving in self._starving.values())
