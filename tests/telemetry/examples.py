"""Plain data for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmosd.types import KernelStats, PoolView, RequestView, State, TimeSplit

MILLISECOND = 1_000_000


def view(id: str = "r1", **changes: Any) -> RequestView:
    """A request as the kernel shows it, queued and just accepted at Unix time 1,000."""
    base = RequestView(
        id=id,
        user="alice",
        model="m",
        state=State.QUEUED,
        nice=0,
        prompt_tokens=12,
        completion_tokens=0,
        cached_tokens=0,
        max_tokens=64,
        n=1,
        pages=0,
        position=1,
        preemptions=0,
        created_at=1000.0,
        arrived=0,
        first_token=None,
        times=TimeSplit(),
    )
    return replace(base, **changes)


def finished(id: str = "r1", **changes: Any) -> RequestView:
    """It waited 10 ms, prefilled 20 ms, decoded 32 tokens in 310 ms, was preempted 5 ms; other is 5 ms."""
    times = TimeSplit(*(ms * MILLISECOND for ms in (10, 20, 310, 5, 5)))
    facts: dict[str, Any] = {
        "state": State.FINISHED,
        "completion_tokens": 32,
        "times": times,
        "finish": "stop",
        "first_token": 30 * MILLISECOND,
        "position": None,
    }
    return view(id, **(facts | changes))


def pool(**changes: Any) -> PoolView:
    base = PoolView(
        model="m",
        page_tokens=64,
        total=100,
        used=0,
        shared=0,
        arriving=0,
        leaving=0,
        beyond=0,
        cached=0,
        reserved=0,
        unfilled=0,
        duplicate=None,
        map="." * 100,
        pages_per_code=1,
        slots=0,
        slots_used=0,
        swapped=0,
    )
    return replace(base, **changes)


def stats(**changes: Any) -> KernelStats:
    base = KernelStats(
        slots=8,
        running=0,
        waiting=0,
        prefilling=0,
        pages_total=100,
        pages_used=0,
        pages_shared=0,
        page_tokens=64,
        accepted=0,
        finished=0,
        cancelled=0,
        failed=0,
        preemptions=0,
        prompt_tokens=0,
        generated_tokens=0,
        drafted_tokens=0,
        accepted_tokens=0,
        policy="fcfs",
        pools=(pool(),),
    )
    return replace(base, **changes)
