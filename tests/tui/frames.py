"""Frames for tests: whole, plausible and the same every time."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from math import sin

from llmosd.wire import (
    Amdahl,
    EventMessage,
    Frame,
    Host,
    Latency,
    Mm1,
    Pages,
    Percentiles,
    Queue,
    Queueing,
    RequestRow,
    Status,
    Step,
    Throughput,
)

AT = 1_700_000_000.0  # 22:13:20 UTC
NODE = "node1"
USERS = ("alice", "bob", "carol", "cron", "batch", "eve")


def row(number: int, **changes: object) -> RequestRow:
    return replace(_row(number), **changes) if changes else _row(number)


@cache
def _row(number: int) -> RequestRow:
    rng = random.Random(number)
    state = "decode" if number < 7 else "prefill" if number < 8 else "queued"
    queued = state == "queued"
    return RequestRow(
        id=f"cmpl-{number:04x}{rng.getrandbits(16):04x}",
        state=state,
        nice=rng.choice((0, 0, 0, 5, -5)),
        user=rng.choice(USERS),
        position=number - 7 if queued else None,
        wait_s=rng.uniform(0.01, 3),
        ttft_s=rng.uniform(0.1, 3) if state == "decode" else None,
        age_s=20.0 - number,
        prompt_tokens=rng.randrange(30, 1500),
        cached_tokens=0 if queued else 512,
        completion_tokens=rng.randrange(1, 400) if state == "decode" else 0,
        max_tokens=512,
        tokens_per_s=rng.uniform(20, 35) if state == "decode" else None,
        pages=0 if queued else rng.randrange(2, 30),
        preemptions=0,
    )


def frame(seq: int = 1, requests: int | tuple[RequestRow, ...] = 11, **changes: object) -> Frame:
    """Of second `seq`: slow waves, so that graphs have a shape."""
    wave = (1 + sin(seq / 4)) / 2
    made = Frame(
        node=NODE,
        seq=seq,
        at=AT + seq,
        uptime_s=11_520.0 + seq,
        http="http://127.0.0.1:11500",
        model="smollm2-135m-instruct",
        backend="native",
        threads=2,
        queue=Queue("fcfs", 8, round(5 + 3 * wave), 3, 1, 140, 120, 2, 0, 4, suspended=2, swapped=1),
        pages=Pages(512, round(300 + 150 * wave), 12, 64, 2_949_120, cached=40),
        throughput=Throughput(91_000, 48_211, 410.0 * (1 - wave), 208 * wave, 1.3),
        latency=Latency(
            60.0,
            Percentiles(84, 512.0, 260.0, 2900.0, 4000.0),
            Percentiles(8400, 34.1, 33.0, 46.0, 61.0),
            Percentiles(84, 402.0, 20.0, 2300.0, 3400.0),
            Percentiles(80, 4210.0, 3800.0, 9100.0, 11800.0),
        ),
        step=Step(120_000, 33.0, 46.0, 61.0, 7.2, 0.031),
        loop_lag_p99_ms=3.2,
        host=Host(2, 0.92 - 0.3 * wave, 2_254_857_830, 8_375_186_227, 1.86, 671_088_640),
        queueing=Queueing(
            arrivals=156,
            completions=151,
            lambda_per_s=1.3,
            mu_per_s=1.9,
            measured_l=5.46,
            measured_w_s=4.2,
            measured_wq_s=0.36,
            little=1.02,
            mm1=Mm1(0.684, 2.167, 1.667, 1.14),
            amdahl=Amdahl((1, 2), (33.0, 19.4), (1.1, 0.9), 0.824, 0.79, 0.86, 1.70, 2),
        ),
        requests=tuple(row(n) for n in range(requests)) if isinstance(requests, int) else requests,
    )
    return replace(made, **changes) if changes else made


def status(state: str = "online") -> Status:
    return Status(NODE, state, AT, 4242, "http://127.0.0.1:11500", AT - 11_520)


def event(seq: int = 1, text: str = "preempted, pool 98 %", severity: str = "warning") -> EventMessage:
    return EventMessage(NODE, seq, AT + seq, severity, "preempted", text, "cmpl-0003")
