"""What the kernel expects of whatever executes its plans: the real model, a cost model, a symbolic one in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from llmosd.types import Plan, StepResult


def nothing() -> None:
    """For a caller that has nothing to do while a step computes."""


class Executor(Protocol):
    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        """Run one step: results for exactly the plan's sequences, in its order.

        `meanwhile` is called once, when all is ready and just before what takes long (also where nothing has to be
        run): what it sets off on other threads runs beside the step's computation, not before it.

        Raises StepError when the step failed as a whole; the same plan may then be executed again.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """An executor that may wait for transfers."""

    def interrupt(self) -> None:
        """A plan without sequences that waits, or the next one that would, is done at once. From any thread."""
        ...


@runtime_checkable
class PageStore(Protocol):
    """An executor that gives the contents of pages away and takes them in, between steps."""

    def bytes_per_page(self, model: str) -> int:
        """0 where pages lie out of reach."""
        ...

    def read_pages(self, model: str, pages: Sequence[int]) -> memoryview:
        """The bytes of K and V of these pages, one after the other; a copy."""
        ...

    def write_pages(self, model: str, pages: Sequence[int], contents: Sequence[memoryview]) -> None:
        """What `read_pages` gave, page by page, to these pages."""
        ...
