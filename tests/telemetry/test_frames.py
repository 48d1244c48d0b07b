"""Frames from known events: every number by hand, words where there is too little data, hostile text harmless."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from llmosd.application.frames import ROW_LIMIT, FrameBuilder, Identity
from llmosd.types import Accepted, Ended, Event, Output, RequestView, State, StateChanged, StepStats, TimeSplit
from llmosd.wire import Amdahl, Frame, Host
from tests.telemetry.examples import MILLISECOND, pool, stats, view

SECOND = 1000 * MILLISECOND


def builder() -> FrameBuilder:
    return FrameBuilder(Identity("node", started=0, http="http://h", model="m", backend="native", threads=2))


def build(frames: FrameBuilder, now: int, views: list[RequestView] | None = None, **changes: Any) -> Frame:
    return frames.build(stats(**changes), views or [], Host(cpus=2), now=now, at=now / SECOND)


def life(id: str, arrived: int, *, wait: int, first: int, gap: int, tokens: int) -> list[Event]:
    """A request's events, times in milliseconds: `first` after it left the queue, then a token every `gap`."""
    begun, t = arrived + wait, arrived + wait + first
    events: list[Event] = [
        Accepted(view(id, arrived=arrived * MILLISECOND)),
        StateChanged(id, State.QUEUED, State.PREFILL, begun * MILLISECOND),
    ]
    for token in range(tokens):
        events.append(Output(id, 0, (7,), "x", t * MILLISECOND))
        t += gap if token < tokens - 1 else 0
    parts = (wait, first, t - begun - first, 0, 0)
    times = TimeSplit(*(part * MILLISECOND for part in parts))
    ended = view(id, arrived=arrived * MILLISECOND, state=State.FINISHED, times=times, first_token=1)
    events.append(Ended(ended, t * MILLISECOND))
    return events


def test_latencies_of_one_request() -> None:
    frames = builder()
    frames.observe(life("r1", 1000, wait=100, first=50, gap=20, tokens=11), None)
    latency = build(frames, 2 * SECOND).latency
    assert (latency.queue.mean_ms, latency.ttft.mean_ms, latency.e2e.mean_ms) == (100, 150, 350)
    assert (latency.itl.count, latency.itl.mean_ms) == (10, 20)
    assert latency.itl.p99_ms == pytest.approx(20, rel=0.01)
    assert build(frames, 70 * SECOND).latency.ttft.count == 0


def test_tokens_that_come_together_share_the_gap_and_choices_have_gaps_of_their_own() -> None:
    frames = builder()
    frames.observe([Accepted(view("r1"))], None)
    for choice, tokens, at in ((0, (1,), 10), (1, (1,), 12), (0, (1, 2), 30), (1, (1,), 22), (0, (), 90)):
        frames.observe([Output("r1", choice, tokens, "", at * MILLISECOND)], None)
    latency = build(frames, SECOND).latency
    assert (latency.ttft.count, latency.ttft.mean_ms) == (1, 10)
    assert (latency.itl.count, latency.itl.mean_ms) == (3, 10)


def test_what_was_cancelled_or_failed_has_no_end_to_end_time_but_counts_for_the_queue() -> None:
    frames = builder()
    for state in (State.CANCELLED, State.FAILED):
        ended = view(state, state=state, times=TimeSplit(queued=SECOND), position=None)
        frames.observe([Accepted(view(state)), Ended(ended, SECOND)], None)
    frame = build(frames, 10 * SECOND)
    assert frame.latency.e2e.count == 0 and frame.queueing.completions == 2
    assert (frame.queueing.measured_w_s, frame.queueing.measured_l) == (1.0, pytest.approx(0.2))


def test_rates_are_since_the_previous_frame() -> None:
    frames = builder()
    assert build(frames, SECOND, generated_tokens=100).throughput.generated_per_s == 0
    throughput = build(frames, 3 * SECOND, generated_tokens=160, prompt_tokens=20, finished=4).throughput
    assert (throughput.generated_per_s, throughput.prompt_per_s, throughput.requests_per_s) == (30, 10, 2)


def test_steps_and_their_overhead() -> None:
    frames = builder()
    for sequences in (1, 3):
        times = {"plan_ns": MILLISECOND, "execute_ns": 18 * MILLISECOND, "run_ns": 15 * MILLISECOND}
        step = StepStats(1, SECOND, sequences, 0, sequences, 0, 0, 0, commit_ns=MILLISECOND, **times)
        frames.observe([], step)
    step_figures = build(frames, SECOND).step
    assert (step_figures.total, step_figures.batch_mean) == (2, 2)
    assert step_figures.p50_ms == pytest.approx(20, rel=0.01)
    assert step_figures.overhead == pytest.approx(0.25)
    assert build(builder(), SECOND).step.overhead is None


def test_mm1_stands_beside_what_was_measured_once_there_is_enough() -> None:
    frames = builder()
    assert "too little data: 0 arrivals" in build(frames, SECOND).queueing.mm1.why
    for number in range(20):  # one a second, each there for half a second
        frames.observe(life(f"r{number}", 1000 * number, wait=100, first=100, gap=0, tokens=4), None)
    queueing = build(frames, 20 * SECOND).queueing
    assert (queueing.lambda_per_s, queueing.mu_per_s) == (1.0, 5.0)  # busy for 0.2 s of each second
    assert queueing.measured_l == pytest.approx(0.2) and queueing.little == pytest.approx(1)
    assert (queueing.measured_w_s, queueing.measured_wq_s) == (pytest.approx(0.2), pytest.approx(0.1))
    assert queueing.mm1.rho == pytest.approx(0.2)
    assert queueing.mm1.l == pytest.approx(0.25) and queueing.mm1.w_s == pytest.approx(0.25)
    assert queueing.mm1.wq_s == pytest.approx(0.05) and not queueing.mm1.why


def test_an_overload_is_told_in_words() -> None:
    frames = builder()
    for number in range(40):
        frames.observe([Accepted(view(f"r{number}", arrived=number * SECOND // 4))], None)
    for number in range(10):
        frames.observe([Ended(view(f"r{number}", state=State.FINISHED), (number + 1) * SECOND)], None)
    mm1 = build(frames, 10 * SECOND).queueing.mm1
    assert mm1.rho is not None and mm1.rho >= 1 and mm1.l is None and "unstable" in mm1.why


def test_rows_are_the_live_requests_runners_first_and_the_rest_is_counted() -> None:
    waiting = [view(f"w{place:03}", position=place, arrived=1) for place in range(ROW_LIMIT, 0, -1)]
    runner = view("runs", state=State.DECODE, position=None, arrived=9, times=TimeSplit(decode=2 * SECOND))
    ended = view("ended", state=State.FINISHED, position=None)
    frame = build(builder(), SECOND, [*waiting, ended, runner])
    assert [row.id for row in frame.requests[:3]] == ["runs", "w001", "w002"]
    assert (len(frame.requests), frame.requests_left_out) == (ROW_LIMIT, 1)


def test_a_row_in_numbers() -> None:
    times = TimeSplit(queued=SECOND, prefill=SECOND, decode=2 * SECOND)
    running = view(state=State.DECODE, position=None, completion_tokens=50, first_token=2 * SECOND, times=times)
    (row,) = build(builder(), SECOND, [running]).requests
    assert (row.wait_s, row.ttft_s, row.age_s, row.tokens_per_s) == (1.0, 2.0, 4.0, 25.0)
    (fresh,) = build(builder(), SECOND, [view()]).requests
    assert (fresh.ttft_s, fresh.tokens_per_s) == (None, None)


def test_hostile_names_cannot_drive_a_terminal_nor_swell_the_frame() -> None:
    hostile = view("\x1b]0;x\x07", user="\x1b[2J\u202e" * 100, label="\ud800\x9b\n")
    (row,) = build(builder(), SECOND, [hostile]).requests
    assert all(text.isprintable() and len(text) <= 60 for text in (row.id, row.user, row.label))


def test_a_full_frame_survives_the_wire_and_stays_small() -> None:
    frames = FrameBuilder(Identity("n", 0, amdahl=Amdahl(threads=(1, 2), p=0.9)))
    views = [view(f"{number:032x}", user="u" * 40, label="l" * 40) for number in range(1000)]
    frame = build(frames, SECOND, views)
    payload = msgspec.json.encode(frame)
    assert msgspec.json.decode(payload, type=Frame) == frame
    assert len(payload) < 32_000
    assert frame.queueing.amdahl.p == 0.9


def test_memory_is_told_whole_in_bounded_size() -> None:
    seen = pool(used=40, shared=3, arriving=2, leaving=4, cached=20, reserved=5, unfilled=77, duplicate=6, swapped=2)
    frame = build(
        builder(),
        SECOND,
        pools=(seen,),
        swap_slots=30,
        swap_slots_used=9,
        swap_outs=12,
        swap_ins=3,
        suspended=1,
        parked=7,
    )
    pages, queue, swap = frame.pages, frame.queue, frame.swap
    assert (pages.total, pages.used, pages.shared, pages.cached, pages.reserved) == (100, 40, 3, 20, 5)
    assert (pages.arriving, pages.leaving, pages.unfilled, pages.duplicate) == (2, 4, 77, 6)
    assert (pages.map, pages.pages_per_letter) == ("." * 100, 1)
    assert (queue.suspended, queue.swapped, queue.parked) == (1, 2, 7)
    assert (swap.total, swap.used, swap.out_total, swap.in_total) == (30, 9, 12, 3)
    (row,) = build(builder(), SECOND, [view(swapped_pages=8, waits_for="quota: running 2 of 2")]).requests
    assert (row.swapped_pages, row.waits_for) == (8, "quota: running 2 of 2")


def test_the_pool_is_the_default_models_while_that_is_in_memory() -> None:
    default, idle, busy = pool(), pool(model="idle", used=3), pool(model="busy", used=7)
    assert build(builder(), SECOND, pools=(default, idle, busy)).pages.model == "m"
    assert build(builder(), SECOND, pools=(replace(default, total=0), idle, busy)).pages.model == "busy"
