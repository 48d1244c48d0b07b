"""Prometheus metrics, fed by the engine's batches.

Names of the `vllm:` family are used where the meaning is vLLM's, so that its dashboards, routers and benchmarks work
unchanged; what has no counterpart there is `llmos_…`. Latencies are vLLM's definitions: time to first token counts
from arrival, tokenisation included; the queue time ends when a request is first scheduled; gaps between tokens include
a preemption between them; requests that were cancelled or failed have no latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llmosd.application.engine import Batch
from llmosd.application.http.collectors import (
    Distribution,
    KernelCollector,
    ModelCollector,
    ReadCollector,
    UserCollector,
)
from llmosd.types import (
    Accepted,
    Ended,
    Event,
    ModelStats,
    Nanoseconds,
    Output,
    RequestId,
    RequestView,
    State,
    StateChanged,
    StepStats,
    UserUsage,
)

_TTFT = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5, 10, 20, 40, 80, 160)
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST = (0.01, 0.03, 0.1, 0.3, 0.6, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_STEP = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS = tuple(2**power for power in range(16))

# Why a request ended, in vLLM's words.
_FINISHED_REASON = {State.CANCELLED: "abort", State.FAILED: "error"}


@dataclass(slots=True)
class _Life:
    """What is remembered of a live request to time it."""

    model: str
    arrived: Nanoseconds
    accepted: Nanoseconds
    prompt_tokens: int
    scheduled: Nanoseconds | None = None
    first: Nanoseconds | None = None
    last: dict[int, Nanoseconds] = field(default_factory=dict)  # choice → when its latest token came


class Metrics:
    """One registry of its own; `observe` is to be subscribed to the service's batches."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._lives: dict[RequestId, _Life] = {}
        self._kernel = KernelCollector()
        self.registry.register(self._kernel)
        self._make_latencies()
        self._make_counters()

    def observe(self, batch: Batch) -> None:
        self._kernel.stats = batch.stats
        for event in batch.events:
            if type(event) is not Output:
                self._on_rare(event)
            elif event.tokens and (life := self._lives.get(event.id)):
                self._on_tokens(life, event)
        if batch.step:
            self._on_step(batch.step)

    def users(self, read: Callable[[], Iterable[UserUsage]]) -> None:
        """What each user holds and has used, read at every scrape."""
        self.registry.register(UserCollector(read))

    def models(self, read: Callable[[], Iterable[ModelStats]]) -> None:
        """What each model takes and how often it was loaded, read at every scrape."""
        self.registry.register(ModelCollector(read))

    def count_http(self, method: str, route: str, status: int) -> None:
        self._http.labels(method, route, str(status)).inc()

    def gauge(self, name: str, documentation: str, read: Callable[[], float | None]) -> None:
        """A value read at every scrape; None leaves it out."""
        self.registry.register(ReadCollector(GaugeMetricFamily, name, documentation, read))

    def counter(self, name: str, documentation: str, read: Callable[[], float | None]) -> None:
        """A total kept elsewhere, read at every scrape; None leaves it out."""
        self.registry.register(ReadCollector(CounterMetricFamily, name, documentation, read))

    # ------------------------------------------------------------ what there is

    def _make_latencies(self) -> None:
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token", _TTFT)
        self._itl = self._histogram("vllm:inter_token_latency_seconds", "Gap between tokens of one choice", _GAP)
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to end", _REQUEST)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Queued until first scheduled", _REQUEST)
        self._prefill = self._histogram("vllm:request_prefill_time_seconds", "First scheduled to first token", _REQUEST)
        self._decode = self._histogram("vllm:request_decode_time_seconds", "First to last token", _REQUEST)
        self._preempted = self._histogram("llmos_request_preempted_time_seconds", "Time without pages", _REQUEST)
        self._iteration = self._histogram("vllm:iteration_tokens_total", "Tokens of one engine step", _TOKENS)
        self._step = self._histogram(
            "llmos_step_seconds", "One engine step, with what the engine did since the one before", _STEP
        )

    def _make_counters(self) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(name, documentation, ("model_name", *labels), registry=self.registry)

        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens prefilled, each once")
        self._success = counter("vllm:request_success", "Ended choices", "finished_reason")
        self._preemptions = counter("llmos_preemptions", "Preemptions", "reason")
        self._run = counter("llmos_step_run_seconds", "Step time inside ONNX Runtime")
        self._overhead = counter("llmos_step_overhead_seconds", "Step time outside ONNX Runtime")
        for metric in (self._prompt_tokens, self._run, self._overhead):
            metric.labels(self._model)  # is there from the start
        self._http = Counter(
            "llmos_http_requests", "Answered HTTP requests", ("method", "route", "status"), registry=self.registry
        )

    def _histogram(self, name: str, documentation: str, bounds: Sequence[float]) -> Distribution:
        distribution = Distribution(name, documentation, self._model, bounds)
        self.registry.register(distribution)
        return distribution

    # ------------------------------------------------------------ what happens

    def _on_rare(self, event: Event) -> None:
        match event:
            case Accepted(request=view):
                accepted = view.arrived + view.times.total
                self._lives[view.id] = _Life(
                    view.model, view.arrived, accepted, view.prompt_tokens, first=view.first_token
                )
            case StateChanged(id=id, new=State.PREFILL) if life := self._lives.get(id):
                if life.scheduled is None and life.first is None:  # a restored request may have been timed already
                    life.scheduled = event.now
            case StateChanged(id=id, is_preemption=True, reason=reason) if life := self._lives.get(id):
                self._preemptions.labels(life.model, reason).inc()
            case Ended(request=view, now=now) if life := self._lives.pop(view.id, None):
                self._on_ended(life, view, now)

    def _on_tokens(self, life: _Life, output: Output) -> None:
        if life.first is None:
            life.first = output.now
            self._ttft.observe(_s(output.now - life.arrived), life.model)
            self._prompt_tokens.labels(life.model).inc(life.prompt_tokens)
        if (last := life.last.get(output.choice)) is not None:
            for _ in output.tokens:  # a step that brings several shares its time among them
                self._itl.observe(_s(output.now - last) / len(output.tokens), life.model)
        life.last[output.choice] = output.now

    def _on_ended(self, life: _Life, view: RequestView, now: Nanoseconds) -> None:
        if reason := _FINISHED_REASON.get(view.state):
            self._success.labels(life.model, reason).inc()
            return
        for reason in (view.finish or "").split(","):
            self._success.labels(life.model, reason).inc()
        self._e2e.observe(_s(now - life.arrived), life.model)
        self._preempted.observe(_s(view.times.preempted + view.times.swapped), life.model)
        if life.scheduled is not None and life.first is not None:
            self._queue.observe(_s(life.scheduled - life.accepted), life.model)
            self._prefill.observe(_s(life.first - life.scheduled), life.model)
            self._decode.observe(_s(max(life.last.values()) - life.first), life.model)

    def _on_step(self, step: StepStats) -> None:
        model = step.model or self._model
        self._iteration.observe(step.prefill_tokens + step.decode_tokens + step.accepted, model)
        self._step.observe(_s(step.total_ns), model)
        self._run.labels(model).inc(_s(step.run_ns))
        self._overhead.labels(model).inc(_s(max(0, step.total_ns - step.run_ns)))


def _s(time: Nanoseconds) -> float:
    return time / 1e9
