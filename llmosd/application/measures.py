"""What the last minute's events and steps, and the last two minutes' queue, amount to: parts of a Frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmosd.prediction.estimators import LatencyWindow, QueueMeasures
from llmosd.prediction.formulas import mm1
from llmosd.types import Accepted, Ended, Event, Nanoseconds, Output, RequestId, State, StateChanged, StepStats
from llmosd.wire import Latency, Mm1, Percentiles, Queueing, Step

WINDOW_S = 60
ENOUGH = 10  # arrivals and completions that M/M/1 is given at least


@dataclass(slots=True)
class _Life:
    """What is remembered of a live request: when it arrived, was queued, and per choice when its last tokens came."""

    arrived: Nanoseconds
    queued: Nanoseconds
    begun: bool  # it had a first token when it was restored
    last: dict[int, Nanoseconds] = field(default_factory=dict)


class Latencies:
    """Time to first token, gap per token, wait in the queue and end-to-end time over the last minute, in milliseconds.

    Each is counted when it happens; end-to-end times are those of finished requests.
    """

    def __init__(self) -> None:
        self._ttft, self._itl, self._wait, self._e2e = (LatencyWindow(WINDOW_S) for _ in range(4))
        self._lives: dict[RequestId, _Life] = {}

    def observe(self, events: Iterable[Event]) -> None:
        gaps = Counter[tuple[float, Nanoseconds]]()  # a step's are mostly the same
        for event in events:
            if type(event) is not Output:
                self._on_rare(event)
            elif event.tokens and (life := self._lives.get(event.id)):
                self._output(life, event, gaps)
        for (gap, now), times in gaps.items():
            self._itl.add(gap, now, times)

    def _on_rare(self, event: Event) -> None:
        match event:
            case Accepted(request=view):
                self._lives[view.id] = _Life(
                    view.arrived, view.arrived + view.times.other, view.first_token is not None
                )
            case StateChanged(id=id, old=State.QUEUED, new=State.PREFILL, now=now) if life := self._lives.get(id):
                self._wait.add((now - life.queued) / 1e6, now)
            case Ended(request=view, now=now):
                self._lives.pop(view.id, None)
                if view.state is State.FINISHED:
                    self._e2e.add(view.times.total / 1e6, now)

    def _output(self, life: _Life, output: Output, gaps: Counter[tuple[float, Nanoseconds]]) -> None:
        """A step may bring several tokens of one choice: the gap is shared among them."""
        now = output.now
        if not life.last and not life.begun:
            self._ttft.add((now - life.arrived) / 1e6, now)
        if (before := life.last.get(output.choice)) is not None:
            count = len(output.tokens)
            gaps[(now - before) / 1e6 / count, now] += count
        life.last[output.choice] = now

    def measure(self, now: Nanoseconds) -> Latency:
        ttft, itl, wait, e2e = (_percentiles(w, now) for w in (self._ttft, self._itl, self._wait, self._e2e))
        return Latency(float(WINDOW_S), ttft=ttft, itl=itl, queue=wait, e2e=e2e)


class Steps:
    """Engine steps over the last minute."""

    def __init__(self) -> None:
        self._total = 0
        self._all_ms, self._run_ms, self._batch = (LatencyWindow(WINDOW_S) for _ in range(3))

    def add(self, step: StepStats) -> None:
        self._total += 1
        self._all_ms.add(step.total_ns / 1e6, step.now)
        self._run_ms.add(step.run_ns / 1e6, step.now)
        self._batch.add(step.sequences, step.now)

    def measure(self, now: Nanoseconds) -> Step:
        p50, p95, p99 = self._all_ms.summary(now, 0.5, 0.95, 0.99).percentiles
        all_ms = self._all_ms.total(now)
        overhead = 1 - self._run_ms.total(now) / all_ms if all_ms else None
        return Step(self._total, p50, p95, p99, self._batch.summary(now).mean, overhead)


def queueing(measured: QueueMeasures) -> Queueing:
    """What was measured, beside M/M/1 on the same λ and μ: words where there is too little data or ρ ≥ 1."""
    return Queueing(
        window_s=measured.window_s,
        arrivals=measured.arrivals,
        completions=measured.completions,
        lambda_per_s=measured.arrival_rate,
        mu_per_s=measured.service_rate,
        measured_l=measured.in_system,
        measured_w_s=measured.time_in_system,
        measured_wq_s=measured.time_queued,
        little=measured.little,
        mm1=_mm1(measured),
    )


def _mm1(measured: QueueMeasures) -> Mm1:
    fewest = min(measured.arrivals, measured.completions)
    if fewest < ENOUGH:
        return Mm1(
            why=f"too little data: {measured.arrivals} arrivals, {measured.completions} completions "
            f"in {measured.window_s:.0f} s, {ENOUGH} of each needed"
        )
    model = mm1(measured.arrival_rate, measured.service_rate)
    return Mm1(model.rho, model.l, model.w, model.wq, model.why)


def _percentiles(window: LatencyWindow, now: Nanoseconds) -> Percentiles:
    summary = window.summary(now, 0.5, 0.95, 0.99)
    return Percentiles(summary.count, summary.mean, *summary.percentiles)
