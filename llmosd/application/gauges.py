"""Metrics whose values others keep: they are read at every scrape."""

from __future__ import annotations

from llmosd.application.bus import Bus
from llmosd.application.http.metrics import Metrics
from llmosd.application.lag import LoopLag
from llmosd.application.service import Service
from llmosd.application.store import Store


def offer_metrics(metrics: Metrics, lag: LoopLag, bus: Bus, store: Store, service: Service) -> None:
    def lag_s() -> float | None:
        p99 = lag.p99_ms()
        return None if p99 is None else p99 / 1e3

    metrics.users(lambda: service.inspected.users if service.inspected else ())
    metrics.models(lambda: service.inspected.models if service.inspected else ())
    metrics.gauge("llmos_loop_lag_p99_seconds", "How late the event loop runs what is due, over 60 s", lag_s)
    metrics.gauge(
        "llmos_memory_budget_bytes",
        "Memory that models and the daemon may take",
        lambda: service.inspected.budget if service.inspected else None,
    )
    metrics.gauge(
        "llmos_memory_free_bytes",
        "What of it belongs to nobody",
        lambda: service.inspected.budget_free if service.inspected else None,
    )
    metrics.gauge("llmos_broker_connected", "1 while telemetry reaches the broker", lambda: bus.connected)
    metrics.counter("llmos_telemetry_gaps", "Frames and events that missed the broker", lambda: bus.gaps)
    metrics.counter("llmos_rows_lost", "Rows that could not be stored", lambda: store.lost)
