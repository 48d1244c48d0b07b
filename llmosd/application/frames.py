"""Once a second the daemon's state becomes a Frame: what events and steps showed, the kernel's gauges, the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmosd.application.measures import Latencies, Steps, queueing
from llmosd.application.plain import plain
from llmosd.prediction.estimators import SECOND, QueueMeter
from llmosd.types import (
    ENDED,
    Accepted,
    Ended,
    Event,
    KernelStats,
    Nanoseconds,
    PoolView,
    RequestView,
    StepStats,
)
from llmosd.wire import (
    Amdahl,
    Frame,
    Host,
    Pages,
    Queue,
    RequestRow,
    Swap,
    Throughput,
)

QUEUE_WINDOW_S = 120
ROW_LIMIT = 64  # live requests in a Frame: about 16 KB
NAME_LIMIT = 40  # characters of a user's name or label


UNMEASURED = Amdahl(why="not measured")


@dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same in every Frame of a daemon."""

    node: str
    started: Nanoseconds
    http: str = ""
    model: str = ""
    backend: str = ""
    threads: int = 0
    bytes_per_page: int = 0
    amdahl: Amdahl = UNMEASURED


class FrameBuilder:
    """Observes every batch of the engine; builds Frames. Knows no clock: times come in as arguments."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._seq = 0
        self._latencies = Latencies()
        self._steps = Steps()
        self._queue = QueueMeter(identity.started, QUEUE_WINDOW_S)
        self._before: tuple[Nanoseconds, KernelStats] | None = None

    def observe(self, events: Sequence[Event], step: StepStats | None) -> None:
        self._latencies.observe(events)
        for event in events:
            if isinstance(event, Accepted):
                view = event.request  # a restored one is a customer of this daemon's from now on
                arrived = view.arrived + view.times.total if event.restored else view.arrived
                self._queue.arrive(view.id, arrived)
            elif isinstance(event, Ended):
                self._queue.leave(event.request.id, event.now, event.request.times.queued)
        if step is not None:
            self._steps.add(step)

    def build(
        self,
        stats: KernelStats,
        views: Sequence[RequestView],
        host: Host,
        *,
        now: Nanoseconds,
        at: float,
        state: str = "serving",
        lag_ms: float | None = None,
        gaps: int = 0,
    ) -> Frame:
        """`now` is the daemon's clock, `at` the same moment in Unix seconds; `stats` are those that were asked for with
        all requests; `views` may contain ended ones.
        """
        self._seq += 1
        identity = self._identity
        live = sorted((view for view in views if view.state not in ENDED), key=_running_first)
        return Frame(
            node=identity.node,
            seq=self._seq,
            at=at,
            state=state,
            uptime_s=(now - identity.started) / SECOND,
            http=identity.http,
            model=identity.model,
            backend=identity.backend,
            threads=identity.threads,
            queue=_queue(stats),
            pages=self._pages(stats),
            swap=_swap(stats),
            throughput=self._throughput(stats, now),
            latency=self._latencies.measure(now),
            step=self._steps.measure(now),
            loop_lag_p99_ms=lag_ms,
            host=host,
            queueing=replace(queueing(self._queue.measure(now)), amdahl=identity.amdahl),
            requests=tuple(row(view) for view in live[:ROW_LIMIT]),
            requests_left_out=max(0, len(live) - ROW_LIMIT),
            telemetry_gaps=gaps,
        )

    def _pages(self, stats: KernelStats) -> Pages:
        """The default model's; while that one is not in memory, of the model which has most of them in use."""
        default = self._identity.model
        pool = max(stats.pools, key=lambda pool: (pool.model == default and pool.total > 0, pool.used))
        sizes = {model.name: model.page_bytes for model in stats.models}
        return _pages(pool, sizes.get(pool.model) or self._identity.bytes_per_page)

    def _throughput(self, stats: KernelStats, now: Nanoseconds) -> Throughput:
        """Rates since the previous Frame."""
        then, before = self._before or (now, stats)
        self._before = now, stats
        seconds = (now - then) / SECOND

        def rate(total: int, previous: int) -> float:
            return (total - previous) / seconds if seconds > 0 else 0.0

        return Throughput(
            prompt_tokens_total=stats.prompt_tokens,
            generated_tokens_total=stats.generated_tokens,
            prompt_per_s=rate(stats.prompt_tokens, before.prompt_tokens),
            generated_per_s=rate(stats.generated_tokens, before.generated_tokens),
            requests_per_s=rate(stats.finished, before.finished),
            reused_tokens_total=stats.reused_tokens,
        )


def row(view: RequestView) -> RequestRow:
    decode_s = view.times.decode / SECOND
    return RequestRow(
        id=plain(view.id),
        state=view.state.value,
        nice=view.nice,
        user=plain(view.user, NAME_LIMIT),
        position=view.position,
        wait_s=view.times.queued / SECOND,
        ttft_s=None if view.first_token is None else (view.first_token - view.arrived) / SECOND,
        age_s=view.times.total / SECOND,
        prompt_tokens=view.prompt_tokens,
        cached_tokens=view.cached_tokens,
        completion_tokens=view.completion_tokens,
        max_tokens=view.max_tokens,
        tokens_per_s=view.completion_tokens / decode_s if decode_s and view.completion_tokens else None,
        pages=view.pages,
        preemptions=view.preemptions,
        label=plain(view.label, NAME_LIMIT),
        swapped_pages=view.swapped_pages,
        waits_for=view.waits_for,
        model=view.model,
        session=plain(view.session, NAME_LIMIT),
        service_class=view.service_class,
    )


def _running_first(view: RequestView) -> tuple[int, Nanoseconds]:
    """Those that run by arrival, then those that wait by place in the queue."""
    return (0, view.arrived) if view.position is None else (view.position, view.arrived)


def _queue(stats: KernelStats) -> Queue:
    return Queue(
        policy=stats.policy,
        slots=stats.slots,
        running=stats.running,
        waiting=stats.waiting,
        prefilling=stats.prefilling,
        accepted_total=stats.accepted,
        finished_total=stats.finished,
        cancelled_total=stats.cancelled,
        failed_total=stats.failed,
        preemptions_total=stats.preemptions,
        suspended=stats.suspended,
        swapped=sum(pool.swapped for pool in stats.pools),
        parked=stats.parked,
    )


def _pages(pool: PoolView, bytes_per_page: int) -> Pages:
    return Pages(
        model=pool.model,
        total=pool.total,
        used=pool.used,
        shared=pool.shared,
        page_tokens=pool.page_tokens,
        bytes_per_page=bytes_per_page,
        cached=pool.cached,
        reserved=pool.reserved,
        arriving=pool.arriving,
        leaving=pool.leaving,
        unfilled=pool.unfilled,
        duplicate=pool.duplicate,
        map=pool.map,
        pages_per_letter=pool.pages_per_code,
    )


def _swap(stats: KernelStats) -> Swap:
    return Swap(
        total=stats.swap_slots,
        used=stats.swap_slots_used,
        out_total=stats.swap_outs,
        in_total=stats.swap_ins,
        failures_total=stats.swap_failures,
    )
