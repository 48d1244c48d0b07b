"""The overview in a few lines, for terminals too small for panels. What does not fit is left out whole, last first."""

from __future__ import annotations

from llmos_top.glyphs import Glyphs
from llmos_top.numbers import count, gigabytes, milliseconds, percent, rate, seconds
from llmos_top.panels import level, per_minute, share_of
from llmos_top.queueing import amdahl
from llmos_top.state import State
from llmos_top.text import Line, flow, line
from llmosd.wire import Frame

SPARK = 8


def compact(state: State, frame: Frame, width: int, glyphs: Glyphs) -> list[Line]:
    """Six lines, the most important first: a short terminal shows only the first ones."""
    lines = [
        _queues(state, frame, glyphs),
        _load(state, frame, glyphs),
        _latency(frame),
        _measured(frame, glyphs),
        _predicted(frame),
        amdahl(frame),
    ]
    return [((" ", ""), *flow(chunks, width - 2)) for chunks in lines]


def _queues(state: State, frame: Frame, glyphs: Glyphs) -> list[Line]:
    queue, pages = frame.queue, frame.pages
    share = share_of(pages.used, pages.total)
    word, role = level(share, glyphs)
    running = glyphs.spark(state.series(lambda f: f.queue.running), SPARK, queue.slots)
    waiting = glyphs.spark(state.series(lambda f: f.queue.waiting), SPARK)
    return [
        line(("run ", "label"), f"{queue.running}/{queue.slots} ", (running, "graph")),
        line(("kv ", "label"), f"{percent(share)} ", (glyphs.bar(share, SPARK), role), " ", (word, role)),
        line(("wait ", "label"), f"{count(queue.waiting)} ", (waiting, "graph")),
        line(("preempt ", "label"), f"{count(per_minute(state, lambda f: f.queue.preemptions_total))}/min"),
        line(("suspended ", "label"), count(queue.suspended)),
        line(("swapped ", "label"), count(queue.swapped)),
        line(("idle ", "label"), f"{count(pages.cached)} pages"),
    ]


def _load(state: State, frame: Frame, glyphs: Glyphs) -> list[Line]:
    host = frame.host
    out = glyphs.spark(state.series(lambda f: f.throughput.generated_per_s), SPARK)
    gpus = host.gpus
    chunks = [
        line(("out ", "label"), f"{count(frame.throughput.generated_per_s)}/s ", (out, "graph")),
        line(("in ", "label"), f"{count(frame.throughput.prompt_per_s)}/s"),
        line(("cpu ", "label"), percent(host.cpu)),
        line(("mem ", "label"), f"{gigabytes(host.memory_used)}/{gigabytes(host.memory_total)}"),
        line(("step ", "label"), milliseconds(frame.step.p50_ms)),
    ]
    if gpus:
        chunks.insert(3, line(("gpu ", "label"), percent(sum(g.utilisation for g in gpus) / len(gpus))))
    return chunks


def _latency(frame: Frame) -> list[Line]:
    figures = frame.latency
    return [
        line(("p95 ", "label"), ("first token ", "label"), milliseconds(figures.ttft.p95_ms)),
        line(("per token ", "label"), milliseconds(figures.itl.p95_ms)),
        line(("wait ", "label"), milliseconds(figures.queue.p95_ms)),
        line(("total ", "label"), milliseconds(figures.e2e.p95_ms)),
    ]


def _measured(frame: Frame, glyphs: Glyphs) -> list[Line]:
    q = frame.queueing
    rho = q.mm1.rho
    return [
        line(("λ ", "label"), f"{rate(q.lambda_per_s)}/s"),
        line(("μ ", "label"), f"{rate(q.mu_per_s)}/s"),
        line(("ρ ", "label"), f"{rate(rho)} ", (glyphs.bar(rho, 8), "graph")),
        line(("seen L ", "label"), rate(q.measured_l)),
        line(("W ", "label"), seconds(q.measured_w_s)),
        line(("Wq ", "label"), seconds(q.measured_wq_s)),
    ]


def _predicted(frame: Frame) -> list[Line]:
    model = frame.queueing.mm1
    if model.why:
        return [line(("M/M/1 ", "label"), (model.why, "warn"))]
    return [
        line(("M/M/1 predicts L ", "label"), rate(model.l)),
        line(("W ", "label"), seconds(model.w_s)),
        line(("Wq ", "label"), seconds(model.wq_s)),
    ]
