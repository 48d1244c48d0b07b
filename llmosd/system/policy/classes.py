"""Two classes of service: whatever is `batch` ranks behind every interactive request, whatever the policy.

Batch work goes by arrival and may lose slot and pages to any interactive request; it takes no part in the policy's
accounts.
"""

from __future__ import annotations

from llmosd.system.limits import Limits
from llmosd.system.policy.fcfs import Fcfs
from llmosd.system.policy.policy import Policy
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request
from llmosd.types import Nanoseconds


class ClassQueue(Policy):
    """A policy for interactive requests, and a queue of batch work behind it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.rules)
        self.policy = policy
        self._batch = Fcfs(policy.rules)
        self._running_batch = 0
        self.name, self.moves, self.share = policy.name, policy.moves, policy.share

    def _of(self, request: Request) -> Policy:
        return self._batch if request.batch else self.policy

    # ---- order

    def rank(self, request: Request) -> Rank:
        return (1, request.number) if request.batch else (0, *self.policy.rank(request))

    def seat(self, request: Request) -> Rank:
        return (1, request.number) if request.batch else (0, *self.policy.seat(request))

    def grade(self, request: Request) -> Rank:
        return (1,) if request.batch else (0, *self.policy.grade(request))

    def urgency(self, request: Request) -> Rank:
        return (1,) if request.batch else (0, *self.policy.urgency(request))

    # ---- queue

    def __len__(self) -> int:
        return len(self.policy) + len(self._batch)

    def add(self, request: Request) -> None:
        self._of(request).add(request)

    def remove(self, request: Request) -> None:
        self._of(request).remove(request)

    def head(self) -> Request | None:
        return self.policy.head() or self._batch.head()

    def position(self, request: Request) -> int:
        return (len(self.policy) if request.batch else 0) + self._of(request).position(request)

    # ---- those that run

    @property
    def preempts(self) -> bool:  # type: ignore[override]
        return self.policy.preempts or self._running_batch > 0

    @property
    def chunk(self) -> int | None:  # type: ignore[override]
        return self.policy.chunk

    @property
    def cap(self) -> int | None:  # type: ignore[override]
        return self.policy.cap

    def displaces(self, head: Request, running: Request) -> bool:
        if head.batch or running.batch:
            return running.batch and not head.batch
        return self.policy.displaces(head, running)

    def protects(self, running: Request) -> bool:
        return self._of(running).protects(running)

    def starving(self, request: Request) -> bool:
        return not request.batch and self.policy.starving(request)

    def waits_for(self, request: Request) -> str:
        return self._of(request).waits_for(request)

    # ---- what happens

    def begin(self, limits: Limits, now: Nanoseconds) -> None:
        for policy in (self.policy, self._batch):
            policy.begin(limits, now)

    def advance(self, now: Nanoseconds) -> None:
        self.policy.advance(now)

    def admit(self, request: Request) -> None:
        self._running_batch += request.batch
        self._of(request).admit(request)

    def leave(self, request: Request) -> None:
        self._running_batch -= request.batch
        self._of(request).leave(request)

    def charge(self, request: Request, prompt_tokens: int, output_tokens: int) -> None:
        self._of(request).charge(request, prompt_tokens, output_tokens)

    def forget(self, request: Request) -> None:
        self._of(request).forget(request)

    def observe(self, took: Nanoseconds, room: int, pressure: float) -> None:
        self.policy.observe(took, room, pressure)

    def take_changes(self) -> list[tuple[str, str, str]]:
        return self.policy.take_changes()

    def check(self) -> None:
        self.policy.check()
        self._batch.check()
        assert self._running_batch >= 0
