"""What a step takes on this machine, learnt from steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import sqrt
from statistics import median

from llmosd.system.costs import StepWork
from llmosd.types import Plan, StepResult

_TYPICAL = (1.0, 8.0, 4_096.0, 64.0, 32_768.0)
"""Features of a step: the step, decodes, their context, prefill tokens, and those × what is before each."""
_FIRST = (2e-3, 8e-3, 1e-3, 3e-2, 1e-3)
"""What so much costs until it is known, in seconds: a small model on few cores. The first step corrects the scale."""
_SIZE = len(_TYPICAL)

_MEMORY = 500  # steps of the kind of a step, after which what they taught is largely replaced
_UNSURE = 400.0  # variance of what is not known: its size squared, times so much, in units of a step's variance
_DOUBT = 20.0  # likewise, where the machine has changed
_PACE = 1 / 16  # of an error is taken for the machine's pace
_SAMPLE = 4  # of the steps that only decode one in so many is learnt from, once warm
_WARM = 16  # steps before anything counts as an outlier
_OUTLIER = 4.0  # standard deviations that an error counts as at most
_DEVIATION = 1.4826  # standard deviations of a normal distribution, in median absolute deviations
_NOISE, _LEAST_NOISE = 0.1, 0.005  # median of a step's relative error: at first, and at least
_NOISE_RATE = 0.05  # at which that follows, with each step
_ALLOWANCE, _ALARM = 1.0, 16.0  # of Page's test, in standard deviations
_RECENT = 8  # steps that tell the new pace then


@dataclass(frozen=True, slots=True)
class StepFit:
    """What each unit of work costs in seconds, and how far off that is.

    Errors are relative to what was expected, before the step was learnt from: their mean (`bias`) and the mean of their
    sizes (`error`) over the last steps, pauses of the machine in full, and about the median of their sizes (`noise`).
    """

    step: float
    decode: float
    context: float  # for each token before a decode
    prefill: float
    attention: float  # for each pair of a prompt's token and one before it
    steps: int
    drifts: int  # how often all had to be learnt anew
    bias: float
    error: float
    noise: float


class StepModel:
    """step time = pace · (s + d·decodes + c·context + p·prefill tokens + q·Σ tokens before each), from what steps took.

    Two things are learnt of each step's relative error. The *pace* follows fast: a shared machine is several times
    slower for a while, and all kinds of steps with it. What work costs *in proportion* follows by recursive least
    squares with directional forgetting (Kulhavý, 1987; Bittanti, Bolzern and Campi, 1990): a step replaces old
    knowledge only of what it is made of, so that an hour of decodes forgets nothing of what prefill costs. Errors of
    work that is not known yet count for the second, others for the first.

    An error counts as four standard deviations at most (Huber, 1964), given how unsure the expectation was. Where
    errors keep to one side (Page, 1954) the machine has changed: the pace is that of the last steps, and proportions
    are doubted. They are projected on ≥ 0. Steps with guesses in them teach nothing, and of those that only decode one
    in a few is enough, for they come in long rows. Each step costs constant time.
    """

    def __init__(self) -> None:
        self._costs = list(_FIRST)  # of features in typical units, at pace 1
        self._covariance = _diagonal(_UNSURE)
        self._pace = 1.0
        self._seen = self._steps = self._drifts = 0
        self._noise = _NOISE
        self._slow = self._fast = 0.0  # Page's sums
        self._recent = deque[float](maxlen=_RECENT)
        self._bias = self._error = 0.0

    @property
    def fit(self) -> StepFit:
        step, decode, context, prefill, attention = (
            self._pace * cost / unit for cost, unit in zip(self._costs, _TYPICAL, strict=True)
        )
        return StepFit(
            step=step,
            decode=decode,
            context=context,
            prefill=prefill,
            attention=attention,
            steps=self._steps,
            drifts=self._drifts,
            bias=self._bias,
            error=self._error,
            noise=self._noise,
        )

    def step_s(self, work: StepWork) -> float:
        return self._pace * _dot(self._costs, _features(work))

    def seconds(self, tokens: int, past: int) -> float:
        """What `tokens` tokens of a prompt behind `past` others add to the steps that compute them."""
        token_s, pair_s = self._prefill()
        return tokens * token_s + tokens * (past + tokens / 2) * pair_s

    def tokens(self, seconds: float, past: int) -> float:
        """The inverse of `seconds`; infinite where a token costs nothing."""
        token_s, pair_s = self._prefill()
        first = token_s + past * pair_s
        root = first + sqrt(first * first + 2 * pair_s * max(0.0, seconds))
        return max(0.0, 2 * seconds / root) if root else float("inf")

    def observe(self, plan: Plan, result: StepResult) -> None:
        if not result.execute_ns or not plan.sequences or plan.drafts:
            return
        self._seen += 1
        if self._steps < _WARM or plan.query_tokens > len(plan.sequences) or self._seen % _SAMPLE == 0:
            self.learn(StepWork.of(plan), result.execute_ns / 1e9)

    def learn(self, work: StepWork, took: float) -> None:
        """A step took so many seconds, more than none."""
        features = _features(work)
        expected = _dot(self._costs, features)
        if not self._steps:
            self._pace = took / expected
        error = took / (self._pace * expected) - 1
        direction = [feature / expected for feature in features]
        gains = [_dot(row, direction) for row in self._covariance]
        unsure = _dot(direction, gains)  # variance of what was expected, in units of a step's
        self._steps += 1
        counted = self._weighed(error, unsure) / (1 + unsure)
        self._pace *= 1 + _PACE * counted
        self._move(gains, counted)
        self._sharpen(gains, unsure)
        if max(self._slow, self._fast) > _ALARM:
            self._doubt()

    def _prefill(self) -> tuple[float, float]:
        """Seconds for a token, and for each before it."""
        return self._pace * self._costs[3] / _TYPICAL[3], self._pace * self._costs[4] / _TYPICAL[4]

    def _weighed(self, error: float, unsure: float) -> float:
        """What of an error counts."""
        rate = max(1 / self._steps, 1 / _MEMORY)
        self._bias += (error - self._bias) * rate
        self._error += (abs(error) - self._error) * rate
        self._recent.append(error)
        deviation = _DEVIATION * self._noise * sqrt(1 + unsure)
        if unsure < 1:
            within = abs(error) < self._noise
            self._noise = max(_LEAST_NOISE, self._noise * (1 - _NOISE_RATE if within else 1 + _NOISE_RATE))
        if self._steps <= _WARM:
            return error
        score = max(-_OUTLIER, min(_OUTLIER, error / deviation))
        self._slow = max(0.0, self._slow + score - _ALLOWANCE)
        self._fast = max(0.0, self._fast - score - _ALLOWANCE)
        return score * deviation

    def _move(self, gains: list[float], error: float) -> None:
        costs = [cost + gain * error for cost, gain in zip(self._costs, gains, strict=True)]
        for place in range(_SIZE):
            if costs[place] < 0:  # the nearest point, as the covariance measures, where it is 0
                row = self._covariance[place]
                share = costs[place] / row[place]
                costs = [cost - share * entry for cost, entry in zip(costs, row, strict=True)]
        self._costs = [cost if cost > 0 else 0.0 for cost in costs]

    def _sharpen(self, gains: list[float], unsure: float) -> None:
        """Take the step's information in, and in its direction forget as much as keeps `unsure` above a floor."""
        kept = 1 - 1 / _MEMORY - 1 / _MEMORY / unsure
        if kept == 0:
            return
        scale = 1 / (1 / kept + unsure)
        self._covariance = [
            [entry - scaled * gain for entry, gain in zip(row, gains, strict=True)]
            for row, scaled in zip(self._covariance, [scale * gain for gain in gains], strict=True)
        ]

    def _doubt(self) -> None:
        self._drifts += 1
        self._slow = self._fast = 0.0
        self._pace *= 1 + median(self._recent)
        self._covariance = _diagonal(_DOUBT)


def _diagonal(variance: float) -> list[list[float]]:
    return [[variance * size * size * (row == column) for column in range(_SIZE)] for row, size in enumerate(_FIRST)]


def _features(work: StepWork) -> list[float]:
    """In typical units."""
    _, decodes, context, prefill, pairs = _TYPICAL
    return [1.0, work.decodes / decodes, work.context / context, work.prefill / prefill, work.attended / pairs]


def _dot(one: list[float], other: list[float]) -> float:
    return sum(map(float.__mul__, one, other))
