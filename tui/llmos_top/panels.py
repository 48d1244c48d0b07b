"""The panels of the overview as Lines: pure functions of the state and a width. A missing figure is a dash."""

from __future__ import annotations

from collections.abc import Callable

from llmos_top.glyphs import Glyphs
from llmos_top.numbers import (
    NONE,
    count,
    gigabytes,
    milliseconds,
    percent,
)
from llmos_top.state import State
from llmos_top.text import Line, clean, fit, flow, line
from llmosd.wire import Frame, Percentiles

HIGH, ALARM = 0.85, 0.97


def level(share: float, glyphs: Glyphs) -> tuple[str, str]:
    """A word with a shape, and its role, for how full something is."""
    if share >= ALARM:
        return f"{glyphs.alarm} full", "bad"
    return (f"{glyphs.high} high", "warn") if share >= HIGH else ("ok", "good")


def share_of(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def per_minute(state: State, total: Callable[[Frame], int]) -> float | None:
    """Growth of a counter over the last 60 Frames, per minute; None before the second one."""
    known = [frame for frame in state.history[-60:] if frame is not None]
    if len(known) < 2 or known[-1].at <= known[0].at:
        return None
    return max(0, total(known[-1]) - total(known[0])) * 60 / (known[-1].at - known[0].at)


def scheduler_title(frame: Frame) -> str:
    return f"Scheduler {clean(frame.queue.policy)}"


def scheduler(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    queue = frame.queue

    def row(name: str, value: str, series: list[float | None], top: float | None = None) -> Line:
        left = fit(name, 10) + fit(value, 8)
        return line((left[:10], "label"), left[10:], (glyphs.spark(series, width - 18, top), "graph"))

    preempted = per_minute(state, lambda f: f.queue.preemptions_total)
    return [
        row("running", f"{queue.running}/{queue.slots}", state.series(lambda f: f.queue.running), queue.slots),
        row("waiting", count(queue.waiting), state.series(lambda f: f.queue.waiting)),
        flow(
            [
                line(("suspended ", "label"), count(queue.suspended)),
                line(("swapped ", "label"), count(queue.swapped)),
                line(("prefill ", "label"), count(queue.prefilling)),
            ],
            width,
            gap=1,
        ),
        line(("preempted ", "label"), f"{count(preempted)}/min  total {count(queue.preemptions_total)}"),
        flow(
            [
                line(("done ", "label"), count(queue.finished_total)),
                line(("cancelled ", "label"), count(queue.cancelled_total)),
                line(("failed ", "label"), (count(queue.failed_total), "bad" if queue.failed_total else "")),
            ],
            width,
        ),
    ]


def pool_title(frame: Frame) -> str:
    return f"KV pool {frame.pages.total} pages × {frame.pages.page_tokens} tokens"


def pool(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    pages = frame.pages
    share = share_of(pages.used, pages.total)
    word, role = level(share, glyphs)
    free = pages.total - pages.used
    bar = glyphs.bar(share, max(4, width - 19))
    used_by_pages = pages.used * pages.bytes_per_page
    return [
        line(("used ", "label"), fit(percent(share), 4, ">"), " ", (bar, role), " ", (word, role)),
        line(
            ("pages ", "label"),
            f"{count(pages.used)} used  {count(free)} free",
        ),
        flow(
            [
                line(("idle ", "label"), count(pages.cached)),
                line(("shared ", "label"), count(pages.shared)),
                line(("room ", "label"), f"{count(free * pages.page_tokens)} tok"),
            ],
            width,
            gap=1,
        ),
        line(("memory ", "label"), f"{gigabytes(used_by_pages)} of {gigabytes(pages.total * pages.bytes_per_page)}"),
        line(
            ("trend ", "label"),
            (glyphs.spark(state.series(lambda f: f.pages.used), width - 6, pages.total), "graph"),
        ),
    ]


def latency_title(frame: Frame) -> str:
    return f"Latency, last {frame.latency.window_s:.0f} s"


def latency(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    column = max(6, (width - 12) // 5)

    def row(name: str, p: Percentiles) -> Line:
        figures = [*map(milliseconds, (p.p50_ms, p.p95_ms, p.p99_ms, p.mean_ms)), count(p.count)]
        return line((fit(name, 12), "label"), "".join(fit(figure, column, ">") for figure in figures))

    titles = "".join(fit(title, column, ">") for title in ("p50", "p95", "p99", "mean", "n"))
    figures = frame.latency
    return [
        line((" " * 12 + titles, "label")),
        row("first token", figures.ttft),
        row("per token", figures.itl),
        row("queue wait", figures.queue),
        row("end to end", figures.e2e),
    ]


def throughput(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    rates, step = frame.throughput, frame.step

    def row(name: str, value: float, total: int, series: list[float | None]) -> Line:
        room = width - 22
        return line(
            (fit(name, 4), "label"),
            fit(count(value), 6),
            (glyphs.spark(series, room), "graph"),
            (fit(f"sum {count(total)}", 12, ">"), "label"),
        )

    generated = state.series(lambda f: f.throughput.generated_per_s)
    return [
        row("out", rates.generated_per_s, rates.generated_tokens_total, generated),
        row("in", rates.prompt_per_s, rates.prompt_tokens_total, state.series(lambda f: f.throughput.prompt_per_s)),
        line(
            ("step ", "label"),
            f"p50 {milliseconds(step.p50_ms)}  p95 {milliseconds(step.p95_ms)}",
            ("  batch ", "label"),
            NONE if step.batch_mean is None else f"{step.batch_mean:.1f}",
            ("  host ", "label"),
            percent(step.overhead),
        ),
    ]


def utilisation(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    host = frame.host
    memory = share_of(host.memory_used, host.memory_total)
    bar = max(6, width - 42)
    return [
        _gauge("cpu", host.cpu, bar, f"llmosd {host.process_cpu:.1f} of {host.cpus} cores", glyphs),
        _gauge(
            "mem",
            memory,
            bar,
            f"{gigabytes(host.memory_used)}/{gigabytes(host.memory_total)}  llmosd {gigabytes(host.process_rss)}",
            glyphs,
        ),
        _gpu_line(frame, bar, glyphs),
    ]


def _gauge(name: str, share: float, bar: int, note: str, glyphs: Glyphs) -> Line:
    role = "bad" if share >= ALARM else "warn" if share >= HIGH else "good"
    return line((f"{name} ", "label"), fit(percent(share), 4, ">"), " ", (glyphs.bar(share, bar), role), " ", note)


def _gpu_line(frame: Frame, bar: int, glyphs: Glyphs) -> Line:
    """One device in full, several as a mean; none is said in a word."""
    gpus = frame.host.gpus
    if not gpus:
        return line(
            ("gpu ", "label"), ("none", "dim"), ("   loop lag p99 ", "label"), milliseconds(frame.loop_lag_p99_ms)
        )
    busy = sum(gpu.utilisation for gpu in gpus) / len(gpus)
    used, total = sum(gpu.memory_used for gpu in gpus), sum(gpu.memory_total for gpu in gpus)
    power = sum(gpu.power_w or 0 for gpu in gpus)
    many = f"{len(gpus)} devices  " if len(gpus) > 1 else ""
    watts = f"  {power:.0f} W" if power else ""
    return _gauge("gpu", busy, bar, f"{many}{gigabytes(used)}/{gigabytes(total)}{watts}", glyphs)
