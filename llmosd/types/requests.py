"""A request: what is asked, and a copy of what has become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from llmosd.record import record
from llmosd.types.latency import Nanoseconds, Timeline, TimeSplit

RequestId = str
SequenceId = int

POLICY_NAMES = ("fcfs", "priority", "fair", "dynamic", "sjf", "hrrn", "edf", "mlfq")

NICE_MIN, NICE_MAX = -20, 19

ServiceClass = Literal["interactive", "batch"]
"""Somebody waits for it, or nobody does: batch ranks behind all that is interactive."""


class State(StrEnum):
    """Where a request is in its life. `system/request.py` holds the table of legal transitions."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    SWAPPED = "swapped"
    SUSPENDED = "suspended"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})
STANDING = frozenset({State.SUSPENDED, State.PAUSED})  # neither wait nor run: by command, or for a slow client


class FinishReason(StrEnum):
    """Why a sequence stopped, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when a sequence ends. Ranges are checked by the API before it gets here.

    `max_tokens` None means "as many as fit"; the kernel resolves it at submit and the plan carries the result.
    `logprobs` None is off; k ≥ 0 gives the chosen token's log probability and those of the k likeliest.
    `top_k` 0 and `min_p` 0.0 are off. Temperature 0 is greedy.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """What a caller submits.

    `arrived` is when the front end received it, `ready` when it handed it on, after `tokenise` nanoseconds of
    tokenisation; None is the moment of submission.
    """

    id: RequestId
    model: str
    prompt: Sequence[int]
    sampling: Sampling
    user: str = ""
    nice: int = 0
    arrived: Nanoseconds = 0
    created_at: float = 0.0
    label: str = ""  # short control-character-free text for a monitor; empty unless the user asked for it
    cache_salt: str = ""  # requests share prefixes with those of the same salt only
    session: str = ""  # what it is part of, as a conversation; empty: it stands alone
    service_class: ServiceClass = "interactive"
    ready: Nanoseconds | None = None
    tokenise: Nanoseconds = 0
    deadline: Nanoseconds | None = None  # when it fails if it has not ended, on the kernel's clock


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user's running requests may hold at once: how many they are, pages, share of the pool; its weight; and
    what is taken from the user at all: live requests, tokens.

    0 is no limit. Of `pages` and `share` (above 0, at most 1) the tighter one counts. Under the policy `fair` a user of
    weight 2 gets twice the service of one of weight 1. Tokens come from a bucket: `burst` at once, a minute's worth
    where that is 0, and `tokens_per_s` on and on.
    """

    running: int = 0
    pages: int = 0
    share: float = 1.0
    weight: float = 1.0
    live: int = 0
    tokens_per_s: int = 0
    burst: int = 0


@dataclass(frozen=True, slots=True)
class Quotas:
    """A quota for everybody, and one of their own for some users. Whoever names no user is the user ""."""

    default: Quota = Quota()
    users: Mapping[str, Quota] = field(default_factory=dict)

    def of(self, user: str) -> Quota:
        return self.users.get(user, self.default)


UNLIMITED = Quotas()


@record(frozen=True, slots=True)
class RequestView:
    """One row of the process table: a consistent copy of a request at one moment."""

    id: RequestId
    user: str
    model: str
    state: State
    nice: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens already in pages (progress of prefill)
    max_tokens: int  # resolved, per choice
    n: int
    pages: int
    position: int | None  # place in the queue from 1, None when running or ended
    preemptions: int
    created_at: float
    arrived: Nanoseconds
    first_token: Nanoseconds | None
    times: TimeSplit
    finish: str | None = None  # finish reason(s) when ended: "stop", "length", joined by "," for n > 1
    error: str | None = None
    label: str = ""
    reused_tokens: int = 0  # found in the prefix cache, on every admission
    page_ns: int = 0  # integral of the pages it held over time, page·nanoseconds
    waits_for: str = ""  # what keeps it from running, in words
    swapped_pages: int = 0  # in the swap space or on the way there or back
    session: str = ""  # its own id where it stands alone
    service_class: ServiceClass = "interactive"
    timeline: Timeline = ()
