"""Why a request took as long as it did: its time split, the largest cause, and what would shorten it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from llmosd.types import Nanoseconds, QueuedTime, RequestView, Timeline, TimeSplit, WaitReason

PHASES = ("tokenise", "queued", "prefill", "decode", "preempted", "swapped", "suspended", "paused", "rest")
QUEUED = "queued for "

_WHY = {
    "tokenise": ("tokenising its prompt", "a shorter prompt, or less load on the processors"),
    QUEUED + "slots": ("waiting for slots", "raise --slots, or send less at once"),
    QUEUED + "pages": ("waiting for pages", "raise --memory or --pages, or ask for fewer tokens (max_tokens)"),
    QUEUED + "quota": ("waiting for its user's quota", "raise the [quota] of config.toml, or send less at once"),
    QUEUED + "policy": (
        "waiting while requests that came later went first",
        "give it a lower nice value (llmosd nice, `priority`), or choose another --policy",
    ),
    QUEUED + "model": ("waiting for its model's turn in memory", "raise --memory, or name the model in --pinned"),
    QUEUED + "step": (
        "waiting for steps that were under way or full when it came",
        "send shorter prompts beside it, or raise --token-budget if it waits for several steps",
    ),
    "prefill": (
        "computing its prompt",
        "a shorter prompt, one that begins like an earlier one (prefix cache), or fewer requests beside it",
    ),
    "decode": ("generating", "ask for fewer tokens (max_tokens), or let fewer run beside it (--slots)"),
    "preempted": (
        "waiting without pages, which had gone to others",
        "raise --memory or --pages, lower --slots, or give it a lower nice value",
    ),
    "swapped": (
        "being swapped out while others had its pages",
        "raise --memory or --pages, lower --slots, or give it a lower nice value",
    ),
    "suspended": ("being suspended by a person", "resume it sooner (llmosd resume)"),
    "paused": ("being paused, as its client did not read", "read the stream faster"),
    "rest": ("its way here, or a time without a daemon", "a faster connection, or no restart"),
}


@dataclass(frozen=True, slots=True)
class Latency:
    """Integer nanoseconds up to its end, or to now: from tokenise_ns to rest_ns they sum to total_ns, and those of
    `queued_by` to queued_ns. `timeline` has (state, when it began), from the arrival on.
    """

    total_ns: Nanoseconds
    tokenise_ns: Nanoseconds
    queued_ns: Nanoseconds
    queued_by: QueuedTime
    prefill_ns: Nanoseconds
    decode_ns: Nanoseconds
    preempted_ns: Nanoseconds
    swapped_ns: Nanoseconds
    suspended_ns: Nanoseconds
    paused_ns: Nanoseconds
    rest_ns: Nanoseconds
    ttft_ns: Nanoseconds | None
    preemptions: int
    timeline: Timeline
    cause: str  # the largest part, "queued for slots" where that is one of several reasons
    advice: str  # a sentence: how much that was, and what would shorten it

    @classmethod
    def of(cls, view: RequestView) -> Self:
        ttft = None if view.first_token is None else view.first_token - view.arrived
        return cls._of(view.times, ttft, view.preemptions, view.timeline, view.completion_tokens)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Of what `query.request` found."""
        names = ("queued", "prefill", "decode", "preempted", "other", "tokenise", "swapped", "suspended", "paused")
        by = QueuedTime(*(row[f"queued_{reason}_ns"] for reason in WaitReason))
        times = TimeSplit(**{name: row[f"{name}_ns"] for name in names}, queued_by=by)
        timeline = msgspec.json.decode(row["timeline"], type=Timeline)
        return cls._of(times, row["ttft_ns"], row["preemptions"], timeline, row["completion_tokens"])

    @classmethod
    def _of(cls, times: TimeSplit, ttft: Nanoseconds | None, preemptions: int, timeline: Timeline, tokens: int) -> Self:
        cause, largest = _largest(times)
        return cls(
            times.total,
            times.tokenise,
            times.queued,
            times.queued_by,
            times.prefill,
            times.decode,
            times.preempted,
            times.swapped,
            times.suspended,
            times.paused,
            times.rest,
            ttft,
            preemptions,
            timeline,
            cause,
            _advice(cause, largest, times.total, preemptions, tokens),
        )

    def phase(self, name: str) -> Nanoseconds:
        time: Nanoseconds = getattr(self, f"{name}_ns")
        return time


def _largest(times: TimeSplit) -> tuple[str, Nanoseconds]:
    parts = {name: getattr(times, name) for name in PHASES if name != "queued"}
    parts |= {QUEUED + reason: getattr(times.queued_by, reason) for reason in WaitReason}
    return max(parts.items(), key=lambda part: part[1])


def _advice(cause: str, largest: Nanoseconds, total: Nanoseconds, preemptions: int, tokens: int) -> str:
    what, remedy = _WHY[cause]
    share = round(100 * largest / total) if total else 0
    details = ""
    if cause == "decode" and tokens:
        details = f", {tokens} tokens"
    elif cause in ("preempted", "swapped"):
        details = f", preempted {'once' if preemptions == 1 else f'{preemptions} times'}"
    return f"{span(largest)} of {span(total)} ({share} %) went into {what}{details}. To shorten it: {remedy}."


def span(time: Nanoseconds) -> str:
    """A duration in three digits or so, as people write it."""
    for unit, ns in (("s", 10**9), ("ms", 10**6)):
        if time >= ns:
            return f"{time / ns:,.{max(0, 3 - len(str(time // ns)))}f} {unit}"
    return f"{time / 1000:.0f} µs"
