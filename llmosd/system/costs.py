"""What the kernel asks about costs: of a step, and of giving pages up. Fitted answers live in `prediction/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from llmosd.types import Nanoseconds, Plan, StepResult, TransferDone

UNBOUNDED = 2**31


@dataclass(slots=True)
class StepWork:
    """What a step without guesses computes, as far as its time depends on it."""

    decodes: int = 0  # sequences that feed one token and are sampled
    context: int = 0  # tokens before these
    prefill: int = 0  # all other tokens
    attended: float = 0.0  # tokens before each of those, summed

    def add(self, tokens: int, past: int, sample: bool) -> None:
        """A sequence's part: so many tokens behind `past` others."""
        if tokens == 1 and sample:
            self.decodes += 1
            self.context += past
        else:
            self.prefill += tokens
            self.attended += tokens * (past + tokens / 2)

    @classmethod
    def of(cls, plan: Plan) -> StepWork:
        work = cls()
        for part in plan.sequences:
            work.add(len(part.tokens), part.past, part.sample)
        return work


class StepBudget(Protocol):
    def prefill_tokens(self, work: StepWork, past: int, prompts: int, whole: int) -> int:
        """How many tokens of a prompt, behind `past` others, may join a step of `work`; may exceed what it has.

        At least one where the step has no prefill yet: prompts always advance. `prompts` is how many are being computed
        or could be, for they wait and a slot is free; `whole` is all that this one needs if it begins here, else 0.
        """
        ...


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


class LengthEstimate(Protocol):
    def tokens(self, user: str, most: int) -> int:
        """How many tokens a sequence of the user will probably have generated at its end, `most` at most."""
        ...

    def observe(self, user: str, tokens: int) -> None:
        """One has ended with so many."""
        ...


@dataclass(slots=True)
class Prices:
    """Time of the engine that a token of a prompt takes, and one generated. To be set when a model is loaded.

    The default is a guess to begin with, and the ratio of most price lists.
    """

    prompt: Nanoseconds = 500_000
    output: Nanoseconds = 1_000_000

    def cost(self, prompt_tokens: int, output_tokens: int) -> Nanoseconds:
        return prompt_tokens * self.prompt + output_tokens * self.output


@dataclass(frozen=True, slots=True)
class LongestLength:
    """What is known without having seen any: no more than the request asks for."""

    def tokens(self, user: str, most: int) -> int:
        return most

    def observe(self, user: str, tokens: int) -> None:
        """It stays as it is."""


@dataclass(frozen=True, slots=True)
class WholeBudget:
    """A prompt may have all that `token_budget` leaves."""

    def prefill_tokens(self, work: StepWork, past: int, prompts: int, whole: int) -> int:
        return UNBOUNDED


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
    budget: StepBudget = field(default_factory=WholeBudget)
    lengths: LengthEstimate = field(default_factory=LongestLength)
