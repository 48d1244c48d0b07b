"""The request table as data: widths, order, hostile text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_top.glyphs import ASCII, LETTERS, UNICODE, Glyphs
from llmos_top.rows import COLUMNS, SORTS, Order, arrange, columns_for, header_line, row_line, state_cell
from llmos_top.text import plain, width_of
from llmosd.types import State
from llmosd.wire import RequestRow
from tests.tui.frames import row

text = st.text(max_size=30) | st.just("\x1b[2J\x9b31mrm -rf\r\n\u202e")
optional_s = st.none() | st.floats(0, 1e6)
rows_ = st.builds(
    RequestRow,
    id=text,
    state=st.sampled_from([*State, "unheard-of"]).map(str),
    nice=st.integers(-20, 19),
    user=text,
    position=st.none() | st.integers(1, 10_000),
    wait_s=st.floats(0, 1e6),
    ttft_s=optional_s,
    age_s=st.floats(0, 1e6),
    prompt_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
    max_tokens=st.integers(1, 10**6),
    tokens_per_s=st.none() | st.floats(0, 1e5),
    pages=st.integers(0, 10**6),
    preemptions=st.integers(0, 100),
    label=text,
)
glyph_sets = st.sampled_from([UNICODE, ASCII])


@given(rows_, st.integers(20, 200), glyph_sets, st.booleans())
def test_every_row_is_as_wide_as_its_header_and_fits(row: RequestRow, width: int, glyphs: Glyphs, chosen: bool) -> None:
    columns = columns_for(width, [row])
    cells = width_of(row_line(row, columns, glyphs, selected=chosen))
    assert cells == width_of(header_line(columns, Order(), glyphs)) <= width


@given(rows_, glyph_sets)
def test_nothing_in_a_row_can_steer_the_terminal(row: RequestRow, glyphs: Glyphs) -> None:
    shown = plain(row_line(row, columns_for(200, [row]), glyphs, selected=True))
    assert all(c >= " " and not "\x7f" <= c <= "\x9f" and c != "\u202e" for c in shown)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (116, "ID S NI USER QPOS WAIT TTFT AGE PROMPT OUT TOK/S PAGES"),
        (80, "ID S NI USER QPOS WAIT TTFT PROMPT OUT TOK/S PAGES"),
        (58, "ID S NI USER QPOS WAIT TTFT OUT"),
        (44, "ID S NI USER QPOS OUT"),
        (28, "ID S QPOS OUT"),
    ],
)
def test_columns_give_way_in_order_of_importance(width: int, titles: str) -> None:
    assert " ".join(column.title for column in columns_for(width, [row(1, id="short")])) == titles


def test_text_has_a_column_only_where_somebody_gave_some() -> None:
    assert [c.name for c in columns_for(120, [row(1, label="hello")])][-1] == "label"
    assert "label" not in [c.name for c in columns_for(120, [row(1)])]


def test_long_ids_get_room_or_keep_their_ends() -> None:
    long = row(1, id="chatcmpl-0123456789abcdef")
    assert long.id in plain(row_line(long, columns_for(120, [long]), UNICODE, selected=False))
    cut = plain(row_line(long, columns_for(44, [long]), UNICODE, selected=False))
    assert cut.split()[0].startswith("chatcm") and cut.split()[0].endswith("…cdef")


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_letter_and_a_glyph_of_one_cell_each(state: State) -> None:
    for glyphs in (UNICODE, ASCII):
        cell = state_cell(row(1, state=str(state)), glyphs)
        assert cell[0] == LETTERS[state] and width_of([(cell, "")]) == 2


def test_letters_tell_states_apart() -> None:
    assert len(set(LETTERS.values())) == len(State)


def test_prefill_shows_its_progress() -> None:
    prefilling = row(7, state="prefill", prompt_tokens=1400, cached_tokens=512)
    assert "512/1400" in plain(row_line(prefilling, columns_for(120, [prefilling]), UNICODE, selected=False))


# ---------------------------------------------------------------- order

simple = st.builds(
    lambda number, state, wait, tokens: row(number, state=str(state), wait_s=wait, completion_tokens=tokens),
    st.integers(0, 20),
    st.sampled_from(State),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.integers(0, 3),
)
tables = st.lists(simple, max_size=6, unique_by=lambda r: r.id)


@given(tables, st.sampled_from(list(SORTS)), st.randoms(use_true_random=False))
def test_the_same_rows_always_come_in_the_same_order(table: list[RequestRow], by: str, rng: object) -> None:
    arranged = arrange(table, Order(by))
    rng.shuffle(table)  # type: ignore[attr-defined]
    assert arrange(table, Order(by)) == arranged
    assert sorted(arranged, key=lambda r: r.id) == sorted(table, key=lambda r: r.id)


@given(tables, st.sampled_from([name for name, sort in SORTS.items() if sort.descending]))
def test_descending_orders_start_with_the_greatest(table: list[RequestRow], by: str) -> None:
    keys = [SORTS[by].key(r) for r in arrange(table, Order(by))]
    assert keys == sorted(keys, reverse=True)


def test_running_requests_come_first_then_the_queue_by_position() -> None:
    table = [row(n) for n in (10, 8, 9, 7, 2)]
    assert [r.id for r in arrange(table, Order())] == [row(n).id for n in (2, 7, 8, 9, 10)]


@given(tables, tables)
def test_frozen_rows_keep_their_places_and_new_ones_follow(old: list[RequestRow], new: list[RequestRow]) -> None:
    frozen = tuple(r.id for r in arrange(old, Order("age")))
    arranged = [r.id for r in arrange(new, Order("age", frozen))]
    stayed = [id for id in frozen if id in {r.id for r in new}]
    assert arranged[: len(stayed)] == stayed


def test_sorting_goes_through_every_key_and_back() -> None:
    order, seen = Order(), []
    for _ in SORTS:
        seen.append(order.by)
        order = order.next()
    assert seen == list(SORTS) and order == Order()


def test_sort_keys_are_columns_so_that_their_titles_can_show_it() -> None:
    assert set(SORTS) <= {column.name for column in COLUMNS}
