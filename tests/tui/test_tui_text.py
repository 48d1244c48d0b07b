"""Text and numbers as terminal cells: nothing a user wrote can steer the terminal or break the layout."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llmos_top import numbers
from llmos_top.text import clean, crop, ends, fit, fit_ends, flow, line, plain, to_ascii, width_of

HOSTILE = "\x1b[31mred\x1b[0m\x9b2J\x07\r\nnext\u202eright-to-left\u200b\x00"
anything = st.text(max_size=60) | st.sampled_from([HOSTILE, "日本語のテキスト", "👩‍👩‍👧 family", "é\u0301"])
widths = st.integers(0, 40)
lines = st.lists(st.tuples(anything.map(clean), st.sampled_from(["", "good"])), max_size=6).map(tuple)


@given(anything)
def test_clean_text_holds_no_control_or_direction_characters(text: str) -> None:
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", clean(text))


@given(anything)
def test_clean_keeps_what_is_harmless(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    if text.isprintable() and "  " not in text and text == text.strip():
        assert set(text.split()) == set(clean(text).split())


@given(anything, widths, st.sampled_from("<>"))
def test_fit_is_exactly_as_wide_as_asked(text: str, width: int, align: str) -> None:
    assert cell_len(fit(clean(text), width, align)) == width


@given(anything, widths)
def test_fit_ends_is_exactly_as_wide_and_keeps_both_ends(text: str, width: int) -> None:
    text = clean(text)
    cut = fit_ends(text, width)
    assert cell_len(cut) == width
    if width > 4 and cell_len(text) > width and text.isascii():
        head, tail = cut.rsplit("…", 1)
        assert text.startswith(head.rstrip()) and text.endswith(tail)


@given(lines, widths)
def test_crop_is_exactly_as_wide_as_asked(spans: tuple[tuple[str, str], ...], width: int) -> None:
    assert width_of(crop(spans, width)) == width


@given(lines, lines, widths)
def test_ends_fill_the_line_and_keep_the_right_end(left: tuple, right: tuple, width: int) -> None:
    filled = ends(left, right, width)
    assert width_of(filled) == width
    if width_of(right) <= width:
        assert plain(filled).endswith(plain(right))


@given(st.lists(lines, max_size=6), widths)
def test_flow_keeps_a_prefix_of_whole_chunks(chunks: list[tuple[tuple[str, str], ...]], width: int) -> None:
    flowed = flow(chunks, width)
    assert width_of(flowed) <= width
    chunks = [chunk for chunk in chunks if width_of(chunk)]
    if chunks and width_of(chunks[0]) <= width:
        joined = [plain(flow(chunks[:n], 10**6)) for n in range(len(chunks) + 1)]
        assert plain(flowed) in joined


@given(anything)
def test_ascii_form_is_ascii(text: str) -> None:
    assert to_ascii(clean(text)).isascii()


def test_lines_are_plain_spans() -> None:
    assert line("a", ("b", "good")) == (("a", ""), ("b", "good"))


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0, "0ms"), (0.0027, "2.7ms"), (0.24, "240ms"), (0.9996, "1.0s"), (2.94, "2.9s"), (9.96, "10s"),
        (42, "42s"), (99.6, "1m40s"), (250, "4m10s"), (11_520, "3h12m"), (86_400 * 2 + 7_300, "2d02h"),
    ],
)  # fmt: skip
def test_seconds_as_people_read_them(value: float | None, shown: str) -> None:
    assert numbers.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (9999, "9999"), (12_345, "12.3k"), (456_000, "456k"), (1_234_000, "1.2M"), (3e9, "3.0G")],
)
def test_counts_as_people_read_them(value: float | None, shown: str) -> None:
    assert numbers.count(value) == shown


@given(st.floats(0, 86_400 * 99))
def test_seconds_never_take_more_than_six_cells(value: float) -> None:
    assert cell_len(numbers.seconds(value)) <= 6


@given(st.floats(0, 9.9e8))
def test_counts_and_rates_never_take_more_than_five_cells(value: float) -> None:
    assert cell_len(numbers.count(value)) <= 5
    assert cell_len(numbers.rate(value)) <= 5


@given(st.integers(0, 2**49))
def test_bytes_never_take_more_than_five_cells(value: int) -> None:
    assert cell_len(numbers.gigabytes(value)) <= 5


def test_errors_carry_their_sign() -> None:
    assert (numbers.signed_percent(2.17), numbers.signed_percent(-0.6)) == ("+217%", "−60%")
    assert (numbers.signed_percent(8.99), numbers.signed_percent(8815.2)) == ("+899%", "×8816")
