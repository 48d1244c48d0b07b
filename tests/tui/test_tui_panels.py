"""Panels, summary, header and banner: right figures, words where there are none, nothing wider than its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_top import headline, panels, queueing
from llmos_top.compact import compact
from llmos_top.glyphs import ASCII, UNICODE, Glyphs
from llmos_top.headline import Where
from llmos_top.layout import Form, form_for, summary_lines
from llmos_top.liveness import Life, Liveness, liveness
from llmos_top.messages import BrokerDown, BrokerUp, FrameArrived, StatusArrived
from llmos_top.state import State, reduce
from llmos_top.text import plain, width_of
from llmosd.wire import Amdahl, Frame, Gpu, Mm1, Queueing
from tests.tui.frames import event, frame, status

WHERE = Where("mqtt://127.0.0.1:1883", "/var/lib/llmos/llmos.db")
PANELS = (panels.scheduler, panels.pool, panels.latency, panels.throughput, panels.utilisation, queueing.panel)
INNER = {"scheduler": 32, "pool": 32, "latency": 44, "throughput": 56, "utilisation": 56, "panel": 116}
blank = Frame("node1", 1, 0.0)


def known(*frames: Frame) -> State:
    state = reduce(State(), BrokerUp(), 0.0)
    for number, each in enumerate(frames):
        state = reduce(state, FrameArrived(each, b"{}", retained=False), float(number))
    return state


def text(panel: object, shown: Frame, width: int = 116) -> str:
    lines = panel(known(shown), shown, width, UNICODE)  # type: ignore[operator]
    return "\n".join(map(plain, lines))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.__name__)
@pytest.mark.parametrize("shown", [frame(9), blank], ids=["busy", "blank"])
def test_panels_fit_their_boxes_at_120_columns(panel: object, shown: Frame) -> None:
    width = INNER[panel.__name__]  # type: ignore[attr-defined]
    for each in panel(known(frame(8), shown), shown, width, UNICODE):  # type: ignore[operator]
        assert width_of(each) <= width, plain(each)


@given(st.sampled_from([frame(3), blank]), st.integers(20, 130), st.sampled_from([UNICODE, ASCII]))
def test_the_summary_never_overflows(shown: Frame, width: int, glyphs: Glyphs) -> None:
    for each in compact(known(shown), shown, width, glyphs):
        assert width_of(each) <= width


def test_who_stands_still_and_what_lies_idle_have_numbers_of_their_own() -> None:
    shown = frame(9)
    busy = replace(
        shown,
        queue=replace(shown.queue, suspended=3, swapped=12, prefilling=14),
        pages=replace(shown.pages, cached=41),
    )
    assert "suspended 3 swapped 12" in text(panels.scheduler, busy, INNER["scheduler"])
    assert "idle 41" in text(panels.pool, busy, INNER["pool"])
    assert "suspended 3  swapped 12  idle 41 pages" in text(compact, busy, 130)


def test_missing_figures_are_dashes_not_zeroes() -> None:
    assert text(panels.latency, blank).count("–") == 16
    assert "p50 –" in text(panels.throughput, blank)


def test_mm1_stands_beside_what_was_measured_with_its_error() -> None:
    shown = text(queueing.panel, frame(1))
    assert "λ 1.30/s" in shown and "μ 1.90/s" in shown and "ρ 0.68" in shown
    measured, predicted, error = (line.split() for line in shown.splitlines()[1:4])
    assert measured[1:4] == ["5.46", "4.2s", "360ms"]
    assert predicted[2:5] == ["2.17", "1.7s", "1.1s"]
    assert error[-3:] == ["−60%", "−60%", "+217%"]


def test_an_unstable_queue_is_said_in_words() -> None:
    unstable = Queueing(lambda_per_s=3.0, mu_per_s=2.0, mm1=Mm1(rho=1.5, why="unstable: arrivals exceed service"))
    shown = text(queueing.panel, replace(blank, queueing=unstable))
    assert "unstable: arrivals exceed service" in shown and "1.50" in shown
    assert "%" not in shown


def test_amdahl_says_not_measured_and_why() -> None:
    shown = replace(blank, queueing=Queueing(amdahl=Amdahl(why="not measured: one core")))
    assert "Amdahl not measured: one core" in text(queueing.panel, shown)


def test_amdahl_shows_p_its_interval_and_the_spread() -> None:
    shown = text(queueing.panel, frame(1))
    assert "1.70× on 2 cores" in shown and "p 0.82 (0.79 to 0.86)" in shown and "1: 33ms ±0.6ms" in shown


def test_gpus_are_shown_as_their_mean_and_absent_ones_in_a_word() -> None:
    assert "gpu none" in text(panels.utilisation, frame(1))
    gpus = (Gpu("A", 0.2, 1 << 30, 8 << 30, 40.0), Gpu("B", 0.6, 3 << 30, 8 << 30, 60.0))
    shown = frame(1)
    assert "40%" in text(panels.utilisation, replace(shown, host=replace(shown.host, gpus=gpus)))


@pytest.mark.parametrize(("used", "word"), [(100, "ok"), (450, "▲ high"), (512, "‼ full")])
def test_a_full_pool_is_said_with_a_shape_and_a_word(used: int, word: str) -> None:
    shown = frame(1)
    assert word in text(panels.pool, replace(shown, pages=replace(shown.pages, used=used)), 32)


def test_preemptions_are_counted_per_minute() -> None:
    first, last = frame(1), frame(31)
    last = replace(last, queue=replace(last.queue, preemptions_total=last.queue.preemptions_total + 5))
    assert panels.per_minute(known(first, last), lambda f: f.queue.preemptions_total) == pytest.approx(10)
    assert panels.per_minute(known(first), lambda f: f.queue.preemptions_total) is None


# ---------------------------------------------------------------- glyphs

shares = st.floats(-1, 2)


@given(shares, st.integers(0, 40), st.sampled_from([UNICODE, ASCII]))
def test_bars_have_their_width_and_tell_some_from_none_and_all(share: float, width: int, glyphs: Glyphs) -> None:
    bar = glyphs.bar(share, width)
    assert len(bar) == width
    if width > 1:
        assert (bar == glyphs.empty * width) == (share <= 0)
        assert (bar == glyphs.full * width) == (share >= 1)


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=60), st.integers(0, 40))
def test_sparklines_have_their_width_and_leave_gaps(values: list[float | None], width: int) -> None:
    spark = UNICODE.spark(values, width)
    assert len(spark) == width
    for value, glyph in zip(reversed(values), reversed(spark), strict=False):
        assert (glyph == " ") == (value is None)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_sparklines_rise_with_their_values(values: list[float]) -> None:
    levels = [UNICODE.levels.index(glyph) for glyph in UNICODE.spark(values, len(values))]
    pairs = sorted(zip(values, levels, strict=True))
    assert [level for _, level in pairs] == sorted(levels)


# ---------------------------------------------------------------- header, banner, advice


@pytest.mark.parametrize(
    ("live", "shown"),
    [
        (Liveness(Life.LIVE, 0.44), "● LIVE 0.4s"),
        (Liveness(Life.STALE, 4.7), "◐ STALE 4s"),
        (Liveness(Life.DAEMON_DOWN, 130.0), "✕ DAEMON DOWN 2m10s"),
        (Liveness(Life.BROKER_DOWN, 9.0, 4.0), "✕ BROKER DOWN retry 4s"),
        (Liveness(Life.VIA_DB, 0.8, 4.0), "◑ VIA DB 0.8s"),
        (Liveness(Life.CONNECTING), "○ CONNECTING"),
    ],
)
def test_the_chip_has_glyph_word_and_age(live: Liveness, shown: str) -> None:
    assert headline.chip(live, UNICODE)[0] == shown


@given(st.integers(20, 130), st.sampled_from(list(Life)), st.booleans())
def test_header_and_banner_fit_and_the_chip_is_never_cut(width: int, life: Life, paused: bool) -> None:
    live, state = Liveness(life, 4.0, 3.0), known(frame(1))
    header = headline.header(state, live, 0.0, width, UNICODE, paused=paused)
    assert width_of(header) == width
    if width >= 40 and not paused:
        assert headline.chip(live, UNICODE)[0] in plain(header)
    banner = headline.banner(state, live, WHERE, width, UNICODE)
    assert (banner is None) == (life is Life.LIVE)
    assert banner is None or width_of(banner) <= width


def test_trouble_names_the_command_that_ends_it_even_at_60_columns() -> None:
    down = reduce(State(), BrokerDown("connection refused", 2.0), 0.0)
    gone = reduce(known(frame(1)), StatusArrived(status("offline")), 1.0)
    for state in (down, gone):
        banner = headline.banner(state, liveness(state, 1.0), WHERE, 60, UNICODE)
        assert banner is not None and headline.START in plain(banner)


def test_an_empty_screen_says_what_was_tried_and_what_to_do() -> None:
    state = reduce(State(), BrokerDown("connection refused", 2.0), 0.0)
    advice = "\n".join(map(plain, headline.advice(state, liveness(state, 0.0), WHERE)))
    for words in (WHERE.broker, "connection refused", WHERE.database, headline.START, "--broker"):
        assert words in advice


def test_an_idle_daemon_is_not_confused_with_a_dead_one() -> None:
    idle = known(replace(frame(1), requests=()))
    assert "Send one" in plain(headline.advice(idle, liveness(idle, 0.5), WHERE)[0])
    assert "last Frame" in plain(headline.advice(idle, liveness(idle, 60.0), WHERE)[0])


def test_a_newer_daemon_is_shown_as_far_as_known_and_said_so() -> None:
    state = known(replace(frame(1), version=99))
    banner = headline.banner(state, liveness(state, 0.1), WHERE, 80, UNICODE)
    assert banner is not None and "SCHEMA 99>1" in plain(banner)


def test_events_are_cleaned_and_the_newest_comes_first() -> None:
    events = (event(1, "old"), event(2, "\x1b[31mnew\x9b"))
    shown = plain(headline.events_line(events, 120))
    assert "\x1b" not in shown and "\x9b" not in shown
    assert shown.index("new") < shown.index("old")


# ---------------------------------------------------------------- sizes


@given(st.integers(1, 400), st.integers(1, 200))
def test_no_size_is_refused_and_the_table_keeps_its_share(width: int, height: int) -> None:
    form = form_for(width, height)
    assert form in Form
    assert 0 <= summary_lines(form, height) <= max(2, height // 2 - 4)


@pytest.mark.parametrize(
    ("size", "form"),
    [((120, 40), Form.FULL), ((80, 24), Form.COMPACT), ((60, 15), Form.COMPACT), ((200, 14), Form.SHORT)],
)
def test_forms_of_common_sizes(size: tuple[int, int], form: Form) -> None:
    assert form_for(*size) is form
