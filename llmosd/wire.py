"""Version 1 of the telemetry wire format: what MQTT carries, SQLite stores and the monitor paints.

JSON by msgspec. Readers ignore fields they do not know and treat a greater `version` as "show what you can, say so".
Units are in the names: `_s` seconds, `_ms` milliseconds, `_per_s` a rate, `_at` Unix seconds. None is "not measured".
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

VERSION = 1
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what decoding foreign bytes can raise


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one latency over the window (milliseconds); `count` samples."""

    count: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Over the last `window_s` seconds. `ttft` counts from arrival, tokenisation included; `itl` is per token gap."""

    window_s: float = 60.0
    ttft: Percentiles = Percentiles()
    itl: Percentiles = Percentiles()
    queue: Percentiles = Percentiles()
    e2e: Percentiles = Percentiles()


@dataclass(frozen=True, slots=True)
class Queue:
    policy: str = ""
    slots: int = 0
    running: int = 0
    waiting: int = 0
    prefilling: int = 0
    accepted_total: int = 0
    finished_total: int = 0
    cancelled_total: int = 0
    failed_total: int = 0
    preemptions_total: int = 0
    suspended: int = 0
    swapped: int = 0  # requests with pages in the swap space, or on the way there or back
    parked: int = 0  # of the waiting, those that wait for their user's quota


@dataclass(frozen=True, slots=True)
class Pages:
    """Of the default model's pool, or of another's while that model is not in memory. `map` has a letter for each
    `pages_per_letter` pages: used, shared, cached (idle), `o` on the way to disk, `i` on the way in, `.` free, `-` not
    there while the pool is smaller than it may be.

    Waste is in tokens: `unfilled` places after the last token of each sequence, `duplicate` ones that another page in
    use holds too; promised pages (`reserved`, of the cached and the free) are the third part.
    """

    total: int = 0
    used: int = 0
    shared: int = 0
    page_tokens: int = 0
    bytes_per_page: int = 0
    cached: int = 0
    reserved: int = 0
    arriving: int = 0  # of the used, those being read back from disk
    leaving: int = 0  # neither used nor free: on the way to disk
    unfilled: int = 0
    duplicate: int | None = None
    map: str = ""
    pages_per_letter: int = 1
    model: str = ""


@dataclass(frozen=True, slots=True)
class Swap:
    """Pages in the swap space, and totals since the start."""

    total: int = 0
    used: int = 0
    out_total: int = 0
    in_total: int = 0
    failures_total: int = 0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Rates over the last second; totals since start."""

    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    prompt_per_s: float = 0.0
    generated_per_s: float = 0.0
    requests_per_s: float = 0.0
    reused_tokens_total: int = 0  # found in the prefix cache instead of computed


@dataclass(frozen=True, slots=True)
class Step:
    """Engine steps over the window. `overhead` is 1 − (time inside ONNX Runtime / step time)."""

    total: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    batch_mean: float | None = None
    overhead: float | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    utilisation: float  # 0 … 1
    memory_used: int
    memory_total: int
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """Utilisations are 0 … 1; bytes otherwise. `process_cpu` is in cores (2.0 = two full cores)."""

    cpus: int = 0
    cpu: float = 0.0
    memory_used: int = 0
    memory_total: int = 0
    process_cpu: float = 0.0
    process_rss: int = 0
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Mm1:
    """What M/M/1 predicts. Numbers are None and `why` says so in words where the model gives none."""

    rho: float | None = None
    l: float | None = None  # noqa: E741  (the field's own symbol)
    w_s: float | None = None
    wq_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Amdahl:
    """Speed-up 1/((1−p)+p/n) with p from engine steps timed at 1 … n threads; `why` where not measured."""

    threads: tuple[int, ...] = ()
    step_ms: tuple[float, ...] = ()  # median at each thread count
    spread_ms: tuple[float, ...] = ()  # interquartile range at each
    p: float | None = None
    p_low: float | None = None
    p_high: float | None = None
    speedup: float | None = None  # predicted at the host's core count
    cores: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Queueing:
    """Measured arrivals and delays over `window_s`, beside what M/M/1 makes of the same λ and μ."""

    window_s: float = 120.0
    arrivals: int = 0
    completions: int = 0
    lambda_per_s: float | None = None
    mu_per_s: float | None = None
    measured_l: float | None = None
    measured_w_s: float | None = None
    measured_wq_s: float | None = None
    little: float | None = None  # measured L/(λW): near 1 when the window holds enough, whatever the model
    mm1: Mm1 = Mm1()
    amdahl: Amdahl = Amdahl()


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A live (or just ended) request in the monitor's table."""

    id: str
    state: str
    nice: int
    user: str
    position: int | None
    wait_s: float  # time queued so far
    ttft_s: float | None
    age_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    max_tokens: int
    tokens_per_s: float | None
    pages: int
    preemptions: int
    label: str = ""
    swapped_pages: int = 0
    waits_for: str = ""
    model: str = ""
    session: str = ""
    service_class: str = "interactive"


@dataclass(frozen=True, slots=True)
class Frame:
    """The state of one daemon at one second."""

    node: str
    seq: int
    at: float
    version: int = VERSION
    state: str = "serving"  # starting | serving | draining
    uptime_s: float = 0.0
    http: str = ""
    model: str = ""
    backend: str = ""
    threads: int = 0
    queue: Queue = Queue()
    pages: Pages = Pages()
    swap: Swap = Swap()
    throughput: Throughput = Throughput()
    latency: Latency = Latency()
    step: Step = Step()
    loop_lag_p99_ms: float | None = None
    host: Host = Host()
    queueing: Queueing = Queueing()
    requests: tuple[RequestRow, ...] = ()
    requests_left_out: int = 0  # live requests beyond the Frame's row limit
    telemetry_gaps: int = 0


@dataclass(frozen=True, slots=True)
class EventMessage:
    """Something that happened: severity `info`, `warning` or `error`; `kind` is machine-readable."""

    node: str
    seq: int
    at: float
    severity: str
    kind: str
    text: str
    request: str | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Status:
    """Retained; its last will is the same message with state `offline`."""

    node: str
    state: str  # online | draining | offline
    at: float
    pid: int = 0
    http: str = ""
    started_at: float = 0.0
    version: int = VERSION


# ---------------------------------------------------------------- commands


class CommandBody(msgspec.Struct, kw_only=True, frozen=True, rename={"service_class": "class"}):
    """One of COMMANDS and the requests it is about: `ids`, or all live ones that have whatever else is given.

    POST /v1/control takes it. `nice` and `policy` are for the commands of those names, `timeout_s` is for `wait`. The
    command `policy` is about no requests.
    """

    command: str
    ids: tuple[str, ...] = ()
    user: str | None = None
    session: str | None = None
    state: str | None = None
    model: str | None = None
    service_class: str | None = None
    nice: int | None = None
    timeout_s: float | None = None
    policy: str | None = None


class Command(CommandBody, kw_only=True, frozen=True):
    """The same over MQTT: `key` says who asks, `ticket` comes back with the reply."""

    key: str = ""
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class CommandError:
    """As an error of the HTTP API."""

    message: str
    code: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class CommandReply:
    """What came of a command: the requests as they are now, or why nothing has changed."""

    node: str
    at: float
    ticket: str
    command: str = ""
    requests: tuple[RequestRow, ...] = ()
    error: CommandError | None = None
    version: int = VERSION
