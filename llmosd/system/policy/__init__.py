"""Who goes first. A policy orders the requests that wait, and ranks those that run when pages run out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llmosd.system.policy.fcfs import Fcfs
from llmosd.system.policy.priority import Priority
from llmosd.system.policy.ranked import Rank
from llmosd.system.request import Request


class Policy(Protocol):
    """The waiting requests in the policy's order; no operation may scan or sort them."""

    name: str

    def rank(self, request: Request) -> Rank:
        """Smaller goes first; unique; constant while the request waits or runs, unless it is removed and re-added."""
        ...

    def __len__(self) -> int: ...
    def add(self, request: Request) -> None: ...
    def remove(self, request: Request) -> None: ...

    def head(self) -> Request | None:
        """The request to admit next. It stays in the queue until removed, and nothing overtakes it."""
        ...

    def position(self, request: Request) -> int:
        """Place in the queue from 1; of one that is not in it, how many are before it."""
        ...

    def check(self) -> None: ...


POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": Fcfs, "priority": Priority}
