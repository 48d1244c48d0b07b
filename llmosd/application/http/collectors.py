"""Metrics whose values somebody else keeps: read when they are scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmosd.types import KernelStats, ModelStats, UserUsage


class KernelCollector(Collector):
    """The kernel's own gauges and totals of each model, as of the latest batch."""

    def __init__(self) -> None:
        self.stats: KernelStats | None = None

    def collect(self) -> Iterable[Metric]:
        if (stats := self.stats) is None:
            return
        for first, *others in zip(*map(self._of, stats.parts or (stats,)), strict=True):
            first.samples += [sample for other in others for sample in other.samples]
            yield first

    def _of(self, stats: KernelStats) -> Iterable[Metric]:
        label = [stats.model]

        def gauge(name: str, documentation: str, value: float) -> Metric:
            family = GaugeMetricFamily(name, documentation, labels=["model_name"])
            family.add_metric(label, value)
            return family

        def counter(name: str, documentation: str, value: float) -> Metric:
            family = CounterMetricFamily(name, documentation, labels=["model_name"])
            family.add_metric(label, value)
            return family

        usage = stats.pages_used / stats.pages_total if stats.pages_total else 0.0  # it is not loaded
        yield gauge("vllm:num_requests_running", "Requests that run", stats.running)
        yield gauge("vllm:num_requests_waiting", "Requests that wait", stats.waiting)
        yield gauge("llmos_requests_parked", "Requests that wait for their user's quota", stats.parked)
        yield gauge("vllm:kv_cache_usage_perc", "Share of KV pages in use, 1 is all", usage)
        yield gauge("llmos_requests_prefilling", "Running requests that are in prefill", stats.prefilling)
        yield gauge("llmos_slots", "Sequences that can run at once", stats.slots)
        yield gauge("llmos_pages", "Pages of the KV pool", stats.pages_total)
        yield gauge("llmos_pages_used", "Pages in use", stats.pages_used)
        yield gauge("llmos_pages_shared", "Pages that more than one sequence holds", stats.pages_shared)
        yield gauge("llmos_pages_cached", "Idle pages that the prefix cache keeps", stats.pages_cached)
        yield gauge("llmos_pages_reserved", "Pages promised to requests, not drawn yet", stats.pages_reserved)
        yield gauge("llmos_swap_pages", "Pages that the swap space has room for", stats.swap_slots)
        yield gauge("llmos_swap_pages_used", "Pages in the swap space", stats.swap_slots_used)
        yield counter("llmos_swap_out_pages", "Pages written to swap, failures included", stats.swap_outs)
        yield counter("llmos_swap_in_pages", "Pages read from swap, failures included", stats.swap_ins)
        yield counter("llmos_swap_failures", "Pages that could not be written or read back", stats.swap_failures)
        yield counter("llmos_recomputed_tokens", "Tokens computed again after eviction", stats.recomputed_tokens)
        asked = stats.prompt_tokens + stats.reused_tokens
        yield counter("vllm:prefix_cache_queries", "Prompt tokens asked of the prefix cache", asked)
        yield counter("vllm:prefix_cache_hits", "Prompt tokens found there, not computed", stats.reused_tokens)
        yield counter("vllm:num_preemptions", "Preemptions", stats.preemptions)
        yield counter("vllm:generation_tokens", "Generated tokens", stats.generated_tokens)
        yield counter("llmos_speculation_drafted_tokens", "Tokens fed as guesses", stats.drafted_tokens)
        yield counter("llmos_speculation_accepted_tokens", "Guesses that were right", stats.accepted_tokens)
        yield counter("llmos_prefill_tokens", "Prefilled tokens, recomputation included", stats.prompt_tokens)
        yield counter("llmos_requests_accepted", "Accepted requests", stats.accepted)


USER_METRICS: tuple[tuple[str, str, type[GaugeMetricFamily] | type[CounterMetricFamily], str, float], ...] = (
    ("llmos_user_pages", "Pages that a user's requests hold", GaugeMetricFamily, "pages", 1),
    ("llmos_user_running", "Running requests of a user", GaugeMetricFamily, "running", 1),
    ("llmos_user_page_seconds", "Integral over time of the pages held by a user", CounterMetricFamily, "page_ns", 1e9),
    ("llmos_user_prefilled_tokens", "Tokens prefilled for a user", CounterMetricFamily, "prefilled_tokens", 1),
    ("llmos_user_reused_tokens", "Tokens found in the prefix cache instead", CounterMetricFamily, "reused_tokens", 1),
    ("llmos_user_generated_tokens", "Tokens generated for a user", CounterMetricFamily, "generated_tokens", 1),
)  # name, documentation, kind, field of UserUsage, its unit


class UserCollector(Collector):
    """What each user holds and has used. All users whose names are not kept are the user `*`."""

    def __init__(self, read: Callable[[], Iterable[UserUsage]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return [kind(name, documentation, labels=["user"]) for name, documentation, kind, _, _ in USER_METRICS]

    def collect(self) -> Iterable[Metric]:
        usages = [(_label(usage.user), usage) for usage in self._read()]
        for name, documentation, kind, field, unit in USER_METRICS:
            family = kind(name, documentation, labels=["user"])
            for label, usage in usages:
                family.add_metric([label], getattr(usage, field) / unit)
            yield family


MODEL_METRICS: tuple[tuple[str, str, type[GaugeMetricFamily] | type[CounterMetricFamily], str, float], ...] = (
    ("llmos_model_resident", "1 while a model is in memory", GaugeMetricFamily, "resident", 1),
    ("llmos_model_pages", "Pages that a model's pool may use", GaugeMetricFamily, "pages_total", 1),
    ("llmos_model_pages_used", "Pages of a model's pool in use", GaugeMetricFamily, "pages_used", 1),
    ("llmos_model_loads", "Times a model was loaded on demand", CounterMetricFamily, "loads", 1),
    ("llmos_model_unloads", "Times it was unloaded", CounterMetricFamily, "unloads", 1),
    ("llmos_model_load_seconds", "Time that loading it took", CounterMetricFamily, "load_ns", 1e9),
    ("llmos_model_unload_seconds", "Time that unloading it took", CounterMetricFamily, "unload_ns", 1e9),
)  # name, documentation, kind, field of ModelStats, its unit


class ModelCollector(Collector):
    """Which models are in memory, and how often they came and went."""

    def __init__(self, read: Callable[[], Iterable[ModelStats]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return [kind(name, documentation, labels=["model_name"]) for name, documentation, kind, _, _ in MODEL_METRICS]

    def collect(self) -> Iterable[Metric]:
        models = list(self._read())
        for name, documentation, kind, field, unit in MODEL_METRICS:
            family = kind(name, documentation, labels=["model_name"])
            for model in models:
                family.add_metric([model.name], getattr(model, field) / unit)
            yield family


def _label(user: str | None) -> str:
    """Different for different users, whatever they call themselves."""
    if user is None:
        return "*"
    return f"*{user}" if user.startswith("*") else user


class Distribution(Collector):
    """Histograms by model that one thread feeds, many times a step: adding is one search of bounds, without a lock."""

    def __init__(self, name: str, documentation: str, model: str, bounds: Sequence[float]) -> None:
        """There is one of `model` from the start."""
        self._name, self._documentation = name, documentation
        self._bounds = bounds
        self._counts = {model: [0] * (len(bounds) + 1)}  # the last: above all bounds
        self._sums = {model: 0.0}

    def observe(self, value: float, model: str) -> None:
        if model not in self._sums:
            self._counts[model], self._sums[model] = [0] * (len(self._bounds) + 1), 0.0
        self._counts[model][bisect_left(self._bounds, value)] += 1
        self._sums[model] += value

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for model, counts in self._counts.items():
            family.add_metric([model], list(zip(names, accumulate(counts), strict=True)), self._sums[model])
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=["model_name"])


class ReadCollector(Collector):
    """One number that somebody else keeps."""

    def __init__(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        documentation: str,
        read: Callable[[], float | None],
    ) -> None:
        self._family, self._name, self._documentation, self._read = family, name, documentation, read

    def describe(self) -> Iterable[Metric]:
        """Lets the registry refuse a second metric of this name without reading a value."""
        return [self._family(self._name, self._documentation)]

    def collect(self) -> Iterable[Metric]:
        if (value := self._read()) is not None:
            yield self._family(self._name, self._documentation, value=value)
