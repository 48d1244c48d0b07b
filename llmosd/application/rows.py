"""How what the daemon knows becomes rows of the database."""

from __future__ import annotations

from typing import Any

import msgspec

from llmosd.types import ENDED, RequestView, WaitReason
from llmosd.wire import EventMessage, Frame

COLUMNS = (
    *("id", "user", "model", "state", "nice", "n", "prompt_tokens", "completion_tokens", "max_tokens"),
    *(
        "created_at",
        "ended_at",
        "queued_ns",
        "prefill_ns",
        "decode_ns",
        "preempted_ns",
        "swapped_ns",
        "other_ns",
        "total_ns",
    ),
    *("ttft_ns", "preemptions", "finish", "error", "label", "page_ns", "reused_tokens"),
    *(f"queued_{reason}_ns" for reason in WaitReason),
    *("tokenise_ns", "suspended_ns", "paused_ns", "timeline"),
)
# An ended request stays as it ended: a late, older view of it changes nothing.
# But a restored one is live again, whatever the end of the last daemon made of it.
PUT_RESTORED = (
    f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (id, created_at) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in COLUMNS)}"
)
PUT_REQUEST = f"{PUT_RESTORED} WHERE requests.ended_at IS NULL"
PUT_FRAME = "INSERT OR REPLACE INTO frames (ts, seq, running, waiting, payload) VALUES (?, ?, ?, ?, ?)"
PUT_SAMPLE = "INSERT OR REPLACE INTO samples (ts, series, value) VALUES (?, ?, ?)"
PUT_EVENT = "INSERT INTO events (at, severity, kind, request, text) VALUES (?, ?, ?, ?, ?)"

LARGEST = 2**63 - 1  # integer of SQLite

Row = tuple[Any, ...]


def request_row(view: RequestView) -> Row:
    """In the order of COLUMNS. What users wrote is made encodable, so that one request cannot spoil a transaction."""
    times = view.times
    ended_at = view.created_at + times.total / 1e9 if view.state in ENDED else None
    ttft = None if view.first_token is None else view.first_token - view.arrived
    return (
        *(
            _encodable(view.id),
            _encodable(view.user),
            view.model,
            view.state.value,
            view.nice,
            view.n,
            view.prompt_tokens,
        ),
        *(view.completion_tokens, view.max_tokens, view.created_at, ended_at),
        *(times.queued, times.prefill, times.decode, times.preempted, times.swapped, times.other, times.total),
        *(ttft, view.preemptions, view.finish),
        *(None if view.error is None else _encodable(view.error), _encodable(view.label)),
        *(min(view.page_ns, LARGEST), view.reused_tokens),
        *(getattr(times.queued_by, reason) for reason in WaitReason),
        *(times.tokenise, times.suspended, times.paused, msgspec.json.encode(view.timeline).decode()),
    )


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def frame_row(frame: Frame) -> Row:
    payload = msgspec.json.encode(frame).decode()
    return int(frame.at * 1000), frame.seq, frame.queue.running, frame.queue.waiting, payload


def sample_rows(frame: Frame) -> list[Row]:
    return [(int(frame.at * 1000), series, value) for series, value in gauges(frame).items()]


def event_row(event: EventMessage) -> Row:
    return event.at, event.severity, event.kind, event.request, event.text


def gauges(frame: Frame) -> dict[str, float]:
    """The series of `samples`: shares are 0 … 1, memory is bytes, rates are per second, lag is milliseconds."""
    host, pages = frame.host, frame.pages
    series = {
        "cpu": host.cpu,
        "memory": host.memory_used / host.memory_total if host.memory_total else 0.0,
        "process_cpu": host.process_cpu,
        "process_rss": float(host.process_rss),
        "running": float(frame.queue.running),
        "waiting": float(frame.queue.waiting),
        "pages": pages.used / pages.total if pages.total else 0.0,
        "cached": pages.cached / pages.total if pages.total else 0.0,
        "prompt_per_s": frame.throughput.prompt_per_s,
        "generated_per_s": frame.throughput.generated_per_s,
    }
    if frame.loop_lag_p99_ms is not None:
        series["loop_lag_ms"] = frame.loop_lag_p99_ms
    if frame.swap.total:
        series["swap"] = frame.swap.used / frame.swap.total
    for number, gpu in enumerate(host.gpus):
        series[f"gpu{number}"] = gpu.utilisation
        series[f"gpu{number}_memory"] = gpu.memory_used / gpu.memory_total if gpu.memory_total else 0.0
    return series
