"""How much of a prompt joins a step, so that those who decode beside it keep their pace."""

from __future__ import annotations

from llmosd.prediction.step_model import StepModel
from llmosd.system.costs import UNBOUNDED, StepWork

STRETCH = 0.4  # of a decode step, that each prompt may lengthen it by
MOST = 3.0  # likewise, all of them together
UNCUT = 2.0  # likewise, a prompt that is computed in that one step
UNCUT_S = 0.05  # or this, where it is more: who reads an answer does not notice one gap of that length
LEAST = 8  # tokens, whatever they take: a prompt always advances
TILE = 16  # rows that matrix kernels multiply at once, so that one more costs as much as sixteen


class ItlBudget:
    """Keeps steps with decodes within `target_s` seconds; without one, near what they take without prefill.

    Then each prompt that is computed, or could be, lengthens a step by the share f of what its decodes take. One prompt
    gets f/(1+f) of the machine and ends (1+f)/f times as late as alone. With more of them prefill gets what fills the
    free slots, since steps of few decodes waste more than long ones, but no step takes much longer than any reader of
    an answer would bear. A short prompt is not cut: it lengthens one step instead of several. What decodes take is what
    the model expects. Chunks fill the tiles of matrix kernels, as far as they are long enough.
    """

    def __init__(self, model: StepModel, target_s: float | None = None, together: int = 1) -> None:
        """`together`: so many rows cost the kernels hardly more than a few; without a target a chunk fills them."""
        self._model = model
        self._target_s = target_s
        self._together = together

    def prefill_tokens(self, work: StepWork, past: int, prompts: int, whole: int) -> int:
        if not work.decodes:
            return UNBOUNDED
        decode_s = self._model.step_s(StepWork(work.decodes, work.context))
        spent_s = self._model.step_s(work) - decode_s
        if self._target_s:
            left_s = self._target_s - decode_s - spent_s
        else:
            left_s = decode_s * min(STRETCH * prompts, MOST) - spent_s
            if 0 < self._model.seconds(whole, past) <= max(decode_s * UNCUT, UNCUT_S) - spent_s:
                return whole
        tokens, rows = int(min(self._model.tokens(left_s, past), UNBOUNDED)), work.decodes + work.prefill
        return max(self._whole_tiles(rows, tokens), 0 if work.prefill else self._least(rows))

    def _whole_tiles(self, rows: int, tokens: int) -> int:
        """So many tokens behind these rows or, where that is most of them, as many as leave no tile half full."""
        tile = max(TILE, self._together)
        fewer = (rows + tokens) // tile * tile - rows
        return fewer if 2 * fewer >= tokens else tokens

    def _least(self, rows: int) -> int:
        if self._target_s:
            return LEAST
        fill = -rows % self._together
        return max(LEAST, fill if fill >= LEAST else fill + self._together)
