"""What the kernel asks about costs when a request has to give its pages up. Fitted answers live in `prediction/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from llmosd.types import Plan, StepResult, TransferDone


class PrefillCost(Protocol):
    def seconds(self, tokens: int, past: int) -> float:
        """What computing `tokens` tokens behind `past` others adds to the steps that do it."""
        ...

    def observe(self, plan: Plan, result: StepResult) -> None:
        """A step has been executed."""
        ...


class TransferCost(Protocol):
    def seconds(self, outward: int, inward: int) -> float:
        """Work on so many page-outs and page-ins."""
        ...

    def observe(self, done: TransferDone) -> None:
        """A transfer has ended."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantPrefillCost:
    """A guess to begin with: a small model on few cores."""

    token_s: float = 5e-4

    def seconds(self, tokens: int, past: int) -> float:
        return tokens * self.token_s

    def observe(self, plan: Plan, result: StepResult) -> None:
        """It stays as it is."""


@dataclass(frozen=True, slots=True)
class ConstantTransferCost:
    """A guess to begin with: half a megabyte to and from a disk of 500 MB/s."""

    page_s: float = 1e-3

    def seconds(self, outward: int, inward: int) -> float:
        return (outward + inward) * self.page_s

    def observe(self, done: TransferDone) -> None:
        """It stays as it is."""


@dataclass(frozen=True, slots=True)
class Costs:
    prefill: PrefillCost = field(default_factory=ConstantPrefillCost)
    transfer: TransferCost = field(default_factory=ConstantTransferCost)
