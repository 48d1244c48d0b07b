"""Order, tokens for prompts, sequences at once and victims by what is measured: load, KV pressure, SLOs, burstiness.

It looks four times a second; what it goes by are averages over ten seconds:

- *Load*: requests that wait, for each slot. *Burstiness*: variance over mean of arrivals by look, in a minute.
- *SLOs*: the share of first tokens within `slo_ttft` of arrival, and of steps with decodes within `slo_itl`.
- *KV pressure*: pages that are not to be had, and requests that had to give theirs up.

From these follows what to do:

- Order is first come, first served as long as that keeps the SLO; else the shortest first, and those that are too late
  for it behind all others: they have lost, and who is still in time need not lose with them.
- Where steps take too long for `slo_itl` prompts get what fits beside the decodes, by price; else as much as there is.
- Where requests lose their pages again and again, no more run than fit the pool, each with half of what requests hold
  at their end, which is what they hold on average; and late ones give way first.

A change waits until three looks in a row have found the same, and then stands for half a minute, so that it can show
its effect and nothing flaps. It is an event, with its reasons.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from llmosd.system.limits import Limits
from llmosd.system.policy.policy import SECOND, Policy, Rules
from llmosd.system.policy.ranked import Rank, RankedQueue
from llmosd.system.request import Request
from llmosd.types import Nanoseconds, State

LOOK = SECOND // 4
STANDS = 30 * SECOND
LOOKS = 3
MOVED = 32  # requests that become late before one plan


@dataclass(frozen=True, slots=True)
class Setting:
    """What it does."""

    order: Literal["fcfs", "short first"] = "fcfs"
    chunk: int | None = None
    cap: int | None = None

    def __str__(self) -> str:
        parts: list[str] = [self.order]
        if self.chunk is not None:
            parts.append(f"{self.chunk} tokens of prompts a step")
        if self.cap is not None:
            parts.append(f"{self.cap} sequences at once")
        return ", ".join(parts)


@dataclass(slots=True)
class Look:
    """What is counted until the next look."""

    arrivals: int = 0
    first_tokens: int = 0
    first_in_time: int = 0
    steps: int = 0  # with decodes
    steps_in_time: int = 0
    evictions: int = 0
    ended: int = 0
    pressure: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Averages over the last looks."""

    load: float = 0.0
    burstiness: float = 1.0
    ttft: float = 1.0  # share in time
    itl: float = 1.0
    pressure: float = 0.0
    evictions: float = 0.0  # for each request that ends


class Dynamic(Policy):
    """Does what the measurements ask for."""

    name = "dynamic"

    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self.setting = Setting()
        self.measured = Measured()
        self._orders = {"fcfs": RankedQueue(self._by_arrival), "short first": RankedQueue(self._by_length)}
        self._late: dict[Request, None] = {}
        self._due: deque[tuple[Nanoseconds, Request]] = deque()  # when each that has no token yet is late
        self._awaited: set[Request] = set()  # those
        self._look, self._looks = Look(), deque[Look](maxlen=40)
        self._arrivals = deque[int](maxlen=240)
        self._next_look = self._stands_until = self.now
        self._wanted: tuple[Setting, int] = Setting(), 0  # and for how many looks
        self._changes: list[tuple[str, str, str]] = []
        self._decode_step = 0.0  # nanoseconds, of steps without prompts
        self._pages = 0.0  # that a request holds at its end, on average

    # ---- order

    def _by_arrival(self, request: Request) -> Rank:
        return (request.number,)

    def _by_length(self, request: Request) -> Rank:
        return (request in self._late, request.foreseen, request.number)

    def rank(self, request: Request) -> Rank:
        return self._by_arrival(request) if self.setting.order == "fcfs" else self._by_length(request)

    def seat(self, request: Request) -> Rank:
        return self._by_arrival(request)

    def grade(self, request: Request) -> Rank:
        return (request in self._late, request.nice) if self.setting.cap is not None else (request.nice,)

    @property
    def moves(self) -> bool:  # type: ignore[override]
        return True

    @property
    def chunk(self) -> int | None:  # type: ignore[override]
        return self.setting.chunk

    @property
    def cap(self) -> int | None:  # type: ignore[override]
        return self.setting.cap

    # ---- queue

    def __len__(self) -> int:
        return len(self._orders["fcfs"])

    def add(self, request: Request) -> None:
        if request.state is State.QUEUED and request not in self._awaited and request not in self._late:
            self._look.arrivals += 1
            if request.first_token is None:
                self._awaited.add(request)
                self._due.append((request.submitted + self.rules.slo_ttft, request))
        elif request.state is not State.QUEUED:
            self._look.evictions += 1
        for queue in self._orders.values():
            queue.add(request)

    def remove(self, request: Request) -> None:
        for queue in self._orders.values():
            queue.remove(request)

    def head(self) -> Request | None:
        return self._orders[self.setting.order].head()

    def position(self, request: Request) -> int:
        return self._orders[self.setting.order].position(request)

    # ---- what happens

    def begin(self, limits: Limits, now: Nanoseconds) -> None:
        super().begin(limits, now)
        self._limits = limits
        self._next_look = now + LOOK

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        if output_tokens and (request in self._awaited or request in self._late):
            self._look.first_tokens += 1
            self._look.first_in_time += request in self._awaited
            self._awaited.discard(request)
            self._late.pop(request, None)

    def forget(self, request: Request) -> None:
        self._awaited.discard(request)
        self._late.pop(request, None)
        self._look.ended += 1
        generated = sum(len(sequence.tokens) for sequence in request.sequences) // len(request.sequences)
        pages = self._limits.need(request.prompt_tokens, max(1, generated), len(request.sequences))
        self._pages += (pages - self._pages) / 20 if self._pages else pages

    def observe(self, took: Nanoseconds, room: int, pressure: float) -> None:
        look = self._look
        look.steps += 1
        look.steps_in_time += took <= self.rules.slo_itl
        look.pressure = max(look.pressure, pressure)
        if not room:
            self._decode_step += (took - self._decode_step) / 20 if self._decode_step else took

    def advance(self, now: Nanoseconds) -> None:
        self.now = now
        moved = 0
        while self._due and self._due[0][0] < now and moved < MOVED:
            request = self._due.popleft()[1]
            if request in self._awaited:
                self._become_late(request)
                moved += 1
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._measure()
            self._decide()

    def _become_late(self, request: Request) -> None:
        queue = self._orders["short first"]
        waits = request in queue
        if waits:
            queue.remove(request)
        self._awaited.remove(request)
        self._late[request] = None
        if waits:
            queue.add(request)

    # ---- looking and deciding

    def _measure(self) -> None:
        self._looks.append(self._look)
        self._look, looks = Look(), self._looks
        self._arrivals.append(looks[-1].arrivals)
        mean = sum(self._arrivals) / len(self._arrivals)
        spread = sum((count - mean) ** 2 for count in self._arrivals) / len(self._arrivals)
        first, steps = sum(look.first_tokens for look in looks), sum(look.steps for look in looks)
        late = sum(look.first_in_time for look in looks)
        waiting_late = len(self._late)
        self.measured = Measured(
            load=len(self) / self._limits.slots,
            burstiness=spread / mean if mean else 1.0,
            ttft=late / (first + waiting_late) if first + waiting_late else 1.0,
            itl=sum(look.steps_in_time for look in looks) / steps if steps else 1.0,
            pressure=sum(look.pressure for look in looks) / len(looks),
            evictions=sum(look.evictions for look in looks) / max(1, sum(look.ended for look in looks)),
        )

    def _decide(self) -> None:
        wanted, reasons = self._wish()
        if wanted == self.setting:
            self._wanted = wanted, 0
            return
        same, looks = self._wanted
        looks = looks + 1 if wanted == same else 1
        self._wanted = wanted, looks
        if looks >= LOOKS and self.now >= self._stands_until:
            self._changes.append((f"dynamic: {self.setting}", f"dynamic: {wanted}", "; ".join(reasons)))
            self.setting, self._stands_until, self._wanted = wanted, self.now + STANDS, (wanted, 0)

    def _wish(self) -> tuple[Setting, list[str]]:
        """What the measurements ask for, and why. Between two thresholds it is what there is already."""
        is_, seen, reasons = self.setting, self.measured, list[str]()
        order, chunk, cap = is_.order, is_.chunk, is_.cap
        if order == "fcfs" and (seen.ttft < 0.95 or seen.load > 1 or (seen.burstiness > 3 and seen.load > 0.5)):
            order = "short first"
            reasons.append(
                f"{seen.ttft:.0%} of first tokens in time, {seen.load:.1f} waiting a slot, "
                f"burstiness {seen.burstiness:.1f}"
            )
        elif order == "short first" and seen.ttft > 0.99 and seen.load < 0.1 and seen.burstiness < 2:
            order = "fcfs"
            reasons.append("the queue is short and all are in time")
        if chunk is None and seen.itl < 0.98:
            chunk = self._fitting()
            reasons.append(f"{seen.itl:.0%} of steps in time")
        if cap is None and seen.evictions > 0.5 and seen.pressure > 0.9 and self._pages:
            cap = max(1, min(self._limits.slots, int(2 * self._limits.pages / self._pages)))
            reasons.append(f"pages are taken {seen.evictions:.1f} times for each request that ends")
        elif cap is not None and seen.pressure < 0.6:
            cap = None
            reasons.append(f"{1 - seen.pressure:.0%} of the pages are free")
        return Setting(order, chunk, cap), reasons

    def _fitting(self) -> int:
        """Tokens of prompts that fit a step beside the decodes."""
        left = self.rules.slo_itl - self._decode_step
        return max(self._limits.slots, int(0.9 * left / max(1, self.rules.prices.prompt)))

    def take_changes(self) -> list[tuple[str, str, str]]:
        changes, self._changes = self._changes, []
        return changes

    def check(self) -> None:
        for queue in self._orders.values():
            queue.check()
        assert set(self._orders["fcfs"]) == set(self._orders["short first"]), "a request is in one order only"
        assert not self._awaited & self._late.keys()
