"""An executor whose steps cost what a formula says, on a clock that only it moves: for simulation and tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmosd.system.executor import nothing
from llmosd.types import (
    FinishReason,
    Nanoseconds,
    Plan,
    SequenceId,
    SequencePlan,
    SequenceResult,
    SequenceStart,
    StepResult,
    TransferDone,
)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Step time = step + prefill·(tokens of prefill chunks) + decode·(decoding sequences) + context·(tokens read).

    All in nanoseconds. A sequence that feeds one token counts as decoding, guesses behind it cost what prefill does;
    the context read is what it has in pages. A page-out and a page-in take the disk for `page_out` and `page_in`.
    """

    step: float
    prefill: float
    decode: float
    context: float
    page_out: float = 0.0
    page_in: float = 0.0

    def step_time(self, plan: Plan) -> Nanoseconds:
        decodes = sum(len(part.tokens) - part.drafts == 1 for part in plan.sequences)
        context = sum(part.past for part in plan.sequences)
        prefill = self.prefill * (plan.query_tokens - decodes)
        return round(self.step + prefill + self.decode * decodes + self.context * context)


@dataclass(slots=True)
class ManualClock:
    """Time that passes only when told to."""

    now: Nanoseconds = 0

    def advance(self, by: Nanoseconds) -> None:
        self.now += by


class CostModelExecutor:
    """Gives each sequence the number of tokens that `output_tokens` says, capped at its max_tokens; moves the clock.

    The i-th token generated is i. What a sequence gets depends on its position only, so a plan can be repeated. Pages
    go to and from a disk that takes one after the other, beside the steps.
    """

    def __init__(self, cost: CostModel, output_tokens: Callable[[SequenceStart], int], clock: ManualClock) -> None:
        self.clock = clock
        self._cost = cost
        self._output_tokens = output_tokens
        self._known: dict[SequenceId, tuple[int, int, FinishReason]] = {}
        self._disk = _Disk(cost)

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        for sequence in plan.ended:
            self._known.pop(sequence, None)
        for start in plan.started:
            self._known[start.sequence] = self._fate(start)
        self._disk.start(plan, self.clock.now)
        meanwhile()
        took = self._cost.step_time(plan) if plan.sequences else self._disk.until_next(self.clock.now)
        self.clock.advance(took)
        results = tuple(self._result(part) for part in plan.sequences)
        return StepResult(plan.step, results, took, took, self._disk.finished(self.clock.now))

    def _fate(self, start: SequenceStart) -> tuple[int, int, FinishReason]:
        """Prompt length, tokens it will generate, and why it stops then."""
        limit = start.sampling.max_tokens
        wanted = max(1, self._output_tokens(start))
        if limit is not None and wanted >= limit:
            return len(start.prompt), limit, FinishReason.LENGTH
        return len(start.prompt), wanted, FinishReason.STOP

    def _result(self, part: SequencePlan) -> SequenceResult:
        if not part.sample:
            return SequenceResult(part.sequence)
        prompt, outputs, finish = self._known[part.sequence]
        fed = len(part.tokens) - part.drafts
        tokens = [part.past + fed - prompt]
        for guess in part.tokens[fed:]:
            if guess != tokens[-1] or guess + 1 == outputs:
                break
            tokens.append(guess + 1)
        return SequenceResult(part.sequence, tuple(tokens), finish=finish if tokens[-1] + 1 == outputs else None)


class _Disk:
    """Does transfers in the order in which they come, one at a time."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._under_way = deque[tuple[Nanoseconds, TransferDone]]()  # when each ends
        self._free: Nanoseconds = 0  # from then on
        self._step = -1  # whose transfers were set off last

    def start(self, plan: Plan, now: Nanoseconds) -> None:
        if plan.step == self._step:
            return
        self._step = plan.step
        for inward, cost, transfers in (
            (False, self._cost.page_out, plan.page_outs),
            (True, self._cost.page_in, plan.page_ins),
        ):
            for transfer in transfers:
                self._free = max(self._free, now) + round(cost)
                self._under_way.append((self._free, TransferDone(transfer, inward, round(cost))))

    def until_next(self, now: Nanoseconds) -> Nanoseconds:
        """Time to the end of a transfer under way; 0 without one."""
        return max(0, self._under_way[0][0] - now) if self._under_way else 0

    def finished(self, now: Nanoseconds) -> tuple[TransferDone, ...]:
        done = list[TransferDone]()
        while self._under_way and self._under_way[0][0] <= now:
            done.append(self._under_way.popleft()[1])
        return tuple(done)
