"""What prefill and page transfers cost, learnt from the steps and transfers of this machine."""

from __future__ import annotations

from llmosd.types import Plan, StepResult, TransferDone

_KEEP = 0.998  # of what was learnt, with each step
_PRIOR_STEPS = 4.0  # weight of what is assumed to begin with
_OUTLIER = 4.0  # a pause of the machine counts as at most so many times what is expected
_WARM = 16  # steps before anything counts as an outlier, and between two fits
_SWEEPS = 30

_TYPICAL = (1.0, 8.0, 64.0, 32_768.0)
"""Of the features of a step: the step, sequences in decode, prefill tokens, and prefill tokens × context."""
_FIRST = (2e-3, 1e-3, 5e-4, 0.0)
"""What these cost until it is known, in seconds: a small model on few cores."""


class FittedPrefillCost:
    """step time = s + d·decodes + p·prefill tokens + q·Σ tokens·context, fitted to what steps took.

    `context` is what is before a token on average over its chunk: q is attention's part. Weighted least squares with
    all coefficients ≥ 0 and older steps counting less, kept as sums (5 × 5), so that a step costs constant time;
    solved by projected Gauss-Seidel sweeps from the last solution, only when somebody asks. Steps with guesses in them
    teach nothing.
    """

    def __init__(self) -> None:
        size = len(_TYPICAL)
        self._products = [[0.0] * size for _ in range(size)]  # Σ feature · feature, of features in typical units
        self._targets = [0.0] * size  # Σ feature · seconds
        self._solution = [cost * unit for cost, unit in zip(_FIRST, _TYPICAL, strict=True)]
        self._prior = tuple(self._solution)
        self._steps = 0
        self._stale = False

    @property
    def coefficients(self) -> tuple[float, ...]:
        """(s, d, p, q) in seconds."""
        self._solve()
        return tuple(cost / unit for cost, unit in zip(self._solution, _TYPICAL, strict=True))

    def seconds(self, tokens: int, past: int) -> float:
        _, _, token_s, context_s = self.coefficients
        return tokens * token_s + tokens * (past + tokens / 2) * context_s

    def observe(self, plan: Plan, result: StepResult) -> None:
        if not result.execute_ns or not plan.sequences or plan.drafts:
            return
        decodes, prefill, context = 0, 0, 0.0
        for part in plan.sequences:
            if (tokens := len(part.tokens)) == 1 and part.sample:
                decodes += 1
            else:
                prefill += tokens
                context += tokens * (part.past + tokens / 2)
        features = [value / unit for value, unit in zip((1, decodes, prefill, context), _TYPICAL, strict=True)]
        self._learn(features, result.execute_ns / 1e9)

    def _learn(self, features: list[float], took: float) -> None:
        if self._steps >= _WARM:
            if self._steps % _WARM == 0:
                self._solve()
            took = min(took, _OUTLIER * sum(map(float.__mul__, self._solution, features)))
        self._steps += 1
        self._stale = True
        for row, (one, target) in enumerate(zip(features, self._targets, strict=True)):
            self._targets[row] = _KEEP * target + one * took
            self._products[row] = [
                _KEEP * product + one * other for product, other in zip(self._products[row], features, strict=True)
            ]

    def _solve(self) -> None:
        if not self._stale:
            return
        self._stale = False
        for _ in range(_SWEEPS):
            for row, products in enumerate(self._products):
                rest = sum(map(float.__mul__, products, self._solution)) - products[row] * self._solution[row]
                wanted = self._targets[row] - rest + _PRIOR_STEPS * self._prior[row]
                self._solution[row] = max(0.0, wanted / (products[row] + _PRIOR_STEPS))


class FittedTransferCost:
    """Mean work on a page-out and on a page-in, later ones counting more."""

    def __init__(self, page_s: float = 1e-3) -> None:
        """`page_s` is assumed to begin with, for either."""
        self._out, self._in = _Mean(page_s), _Mean(page_s)

    def seconds(self, outward: int, inward: int) -> float:
        return outward * self._out.value + inward * self._in.value

    def observe(self, done: TransferDone) -> None:
        if done.error is None:
            (self._in if done.inward else self._out).add(done.ns / 1e9)


class _Mean:
    """Exponentially weighted over some `_WINDOW` values, the first ones alike."""

    _WINDOW = 64

    def __init__(self, assumed: float) -> None:
        self.value = assumed
        self._count = 0

    def add(self, value: float) -> None:
        if self._count >= _WARM:
            value = min(value, _OUTLIER * self.value)
        self._count = min(self._count + 1, self._WINDOW)
        self.value += (value - self.value) / (self._count + 1)
