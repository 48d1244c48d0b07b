"""How much of a prompt joins a step, so that those who decode beside it keep their pace."""

from __future__ import annotations

from llmosd.prediction.step_model import StepModel
from llmosd.system.costs import UNBOUNDED, StepWork

STRETCH = 0.4  # of a decode step, that each prompt may lengthen it by
LEAST = 4  # tokens, whatever they take: a prompt always advances


class ItlBudget:
    """Keeps steps with decodes within `target_s` seconds; without one, near what they take without prefill.

    Then each prompt that is computed, or could be, lengthens a step by the share f of what its decodes take. One prompt
    gets f/(1+f) of the machine and ends (1+f)/f times as late as alone; with more of them, prefill gets the share that
    fills the free slots, since steps of few decodes waste more than long ones. What decodes take is what the model
    expects.
    """

    def __init__(self, model: StepModel, target_s: float | None = None) -> None:
        self._model = model
        self._target_s = target_s

    def prefill_tokens(self, work: StepWork, past: int, prompts: int) -> int:
        if not work.decodes:
            return UNBOUNDED
        decode_s = self._model.step_s(StepWork(work.decodes, work.context))
        allowed = self._target_s or decode_s * (1 + STRETCH * prompts)
        tokens = self._model.tokens(allowed - self._model.step_s(work), past)
        return max(int(min(tokens, UNBOUNDED)), 0 if work.prefill else LEAST)
