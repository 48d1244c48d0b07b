"""A request as JSON shows it: over HTTP, on the command line, in the store's queries under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from llmosd.application.explain import Latency
from llmosd.application.transcript import Transcript
from llmosd.system.policy import POLICIES
from llmosd.types import FinishReason, KernelStats, Nanoseconds, RequestView


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """The policy that orders requests, and all that there are."""

    policy: str
    policies: tuple[str, ...]

    @classmethod
    def of(cls, stats: KernelStats) -> Self:
        return cls(stats.policy, tuple(POLICIES))


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Times are milliseconds, up to now for a live request. queued + prefill + decode + preempted + other = total, and
    swapped is a part of other.
    """

    id: str
    user: str
    model: str
    state: str
    nice: int
    position: int | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    max_tokens: int
    n: int
    pages: int
    swapped_pages: int  # in the swap space, or on the way there or back
    page_s: float  # integral of pages over time
    reused_tokens: int
    waits_for: str
    preemptions: int
    created_at: float
    queued_ms: float
    prefill_ms: float
    decode_ms: float
    preempted_ms: float
    swapped_ms: float
    other_ms: float
    total_ms: float
    ttft_ms: float | None
    finish: str | None
    error: str | None
    label: str
    session: str
    service_class: str

    @classmethod
    def of(cls, view: RequestView) -> Self:
        times = view.times
        return cls(
            id=view.id,
            user=view.user,
            model=view.model,
            state=view.state,
            nice=view.nice,
            position=view.position,
            prompt_tokens=view.prompt_tokens,
            cached_tokens=view.cached_tokens,
            completion_tokens=view.completion_tokens,
            max_tokens=view.max_tokens,
            n=view.n,
            pages=view.pages,
            swapped_pages=view.swapped_pages,
            page_s=view.page_ns / 1e9,
            reused_tokens=view.reused_tokens,
            waits_for=view.waits_for,
            preemptions=view.preemptions,
            created_at=view.created_at,
            queued_ms=_ms(times.queued),
            prefill_ms=_ms(times.prefill),
            decode_ms=_ms(times.decode),
            preempted_ms=_ms(times.preempted),
            swapped_ms=_ms(times.swapped),
            other_ms=_ms(times.other),
            total_ms=_ms(times.total),
            ttft_ms=None if view.first_token is None else _ms(view.first_token - view.arrived),
            finish=view.finish,
            error=view.error,
            label=view.label,
            session=view.session,
            service_class=view.service_class,
        )


@dataclass(frozen=True, slots=True)
class ChoiceText:
    """What one choice has said so far, or in the end."""

    index: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class RequestDetail(RequestInfo):
    """One request alone; `choices` is null where its text is its own client's only."""

    latency: Latency = field(kw_only=True)
    choices: Sequence[ChoiceText] | None = None

    @classmethod
    def with_text(cls, view: RequestView, transcript: Transcript | None) -> RequestDetail:
        info: dict[str, Any] = {**asdict(RequestInfo.of(view)), "latency": Latency.of(view)}
        if transcript is not None:
            told = zip(transcript.texts, transcript.finishes, strict=True)
            info["choices"] = tuple(ChoiceText(index, text, finish) for index, (text, finish) in enumerate(told))
        return cls(**info)


def _ms(time: Nanoseconds) -> float:
    return time / 1e6
