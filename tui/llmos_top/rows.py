"""The request table as data: which columns fit, what stands in each cell, in which order the rows come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmos_top.glyphs import LETTERS, Glyphs
from llmos_top.numbers import NONE, count, rate, seconds
from llmos_top.text import Line, clean, fit, fit_ends
from llmosd.types import State
from llmosd.wire import RequestRow

Cell = Callable[[RequestRow, Glyphs], str]

ROLES: dict[str, str] = {
    State.DECODE: "good",
    State.PREFILL: "accent",
    State.QUEUED: "",
    State.PREEMPTED: "warn",
    State.SWAPPED: "warn",
    State.SUSPENDED: "warn",
    State.PAUSED: "warn",
    State.CANCELLED: "dim",
    State.FINISHED: "dim",
    State.FAILED: "bad",
}
MARGIN = 2  # the cursor's
LABEL_MIN = 12
ID_BESIDE_TEXT = 20  # cells at most: there the text is worth more


@dataclass(frozen=True, slots=True)
class Column:
    """`rank` orders the columns by importance: when the table is narrow, the highest numbers go first."""

    name: str
    title: str
    width: int
    align: str
    rank: int
    cell: Cell


def state_cell(row: RequestRow, glyphs: Glyphs) -> str:
    """Letter and glyph, so that neither colour nor font decides."""
    return LETTERS.get(row.state, "?") + glyphs.state.get(row.state, "?")


def _prompt(row: RequestRow, glyphs: Glyphs) -> str:
    """Tokens of the prompt; while it is being prefilled, how many of them are done."""
    if row.state == State.PREFILL and row.cached_tokens < row.prompt_tokens:
        return f"{count(row.cached_tokens)}/{count(row.prompt_tokens)}"
    return count(row.prompt_tokens)


COLUMNS = (
    Column("id", "ID", 10, "<", 0, lambda r, g: clean(r.id)),
    Column("state", "S", 2, "<", 1, state_cell),
    Column("nice", "NI", 3, ">", 4, lambda r, g: str(r.nice)),
    Column("user", "USER", 8, "<", 5, lambda r, g: clean(r.user) or NONE),
    Column("position", "QPOS", 4, ">", 2, lambda r, g: NONE if r.position is None else count(r.position)),
    Column("wait", "WAIT", 6, ">", 6, lambda r, g: seconds(r.wait_s)),
    Column("ttft", "TTFT", 6, ">", 7, lambda r, g: seconds(r.ttft_s)),
    Column("age", "AGE", 6, ">", 11, lambda r, g: seconds(r.age_s)),
    Column("prompt", "PROMPT", 9, ">", 9, _prompt),
    Column("tokens", "OUT", 5, ">", 3, lambda r, g: count(r.completion_tokens)),
    Column("rate", "TOK/S", 5, ">", 8, lambda r, g: rate(r.tokens_per_s)),
    Column("pages", "PAGES", 5, ">", 10, lambda r, g: count(r.pages)),
    Column("label", "TEXT", LABEL_MIN, "<", 12, lambda r, g: clean(r.waits_for or r.label)),
)
NO_SUM = frozenset({"state", "nice", "user", "position", "ttft"})  # of several requests
INDENT = 2  # cells for each level of the tree


def columns_for(width: int, rows: Sequence[RequestRow] = (), depth: int = 0) -> tuple[Column, ...]:
    """The columns that fit in `width`, the most important chosen first, in their usual order.

    What is left over goes to the ids while they are cut, `depth` levels deep, then to the text, if there is any.
    """
    room = width - MARGIN
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if column.name == "label" and not any(row.label or row.waits_for for row in rows):
            continue
        if column.width + (1 if chosen else 0) > room:
            break
        room -= column.width + (1 if chosen else 0)
        chosen.append(column)
    wanted = max((len(row.id) for row in rows), default=0) + depth * INDENT
    if any(column.name == "label" for column in chosen):
        wanted = min(wanted, ID_BESIDE_TEXT)
    grown = min(max(0, wanted - COLUMNS[0].width), room)
    return tuple(
        _grow(c, grown if c.name == "id" else room - grown if c.name == "label" else 0) for c in COLUMNS if c in chosen
    )


def _grow(column: Column, cells: int) -> Column:
    return replace(column, width=column.width + cells) if cells else column


def header_line(columns: Sequence[Column], order: Order, glyphs: Glyphs) -> Line:
    """Column titles; the one sorted by carries an arrow."""
    arrow = glyphs.descending if SORTS[order.by].descending else glyphs.ascending
    titles = []
    for column in columns:
        title = column.title
        if column.name == order.by:
            title = title + arrow if len(title) < column.width else title[: column.width - 1] + arrow
        titles.append(fit(title, column.width, column.align))
    return ((" " * MARGIN + " ".join(titles), "label"),)


def row_line(row: RequestRow, columns: Sequence[Column], glyphs: Glyphs, *, selected: bool, depth: int = 0) -> Line:
    """A row without a state is the sum of several, so deep in the tree."""
    spans = [(f"{glyphs.cursor} " if selected else "  ", "accent")]
    ended, sums = row.state in (State.FINISHED, State.CANCELLED), not row.state
    for index, column in enumerate(columns):
        text = "" if sums and column.name in NO_SUM else column.cell(row, glyphs)
        cut = _indented(text, column.width, depth) if column.name == "id" else fit(text, column.width, column.align)
        role = ROLES.get(row.state, "") if column.name == "state" else "dim" if ended else "title" if sums else ""
        spans.append((cut if index == len(columns) - 1 else cut + " ", role))
    return tuple(spans)


def _indented(text: str, width: int, depth: int) -> str:
    indent = min(depth * INDENT, width // 2)
    return " " * indent + fit_ends(text, width - indent)


# ---------------------------------------------------------------- order

RANKS: dict[str, int] = {
    state: rank for rank, state in enumerate((State.DECODE, State.PREFILL, State.PREEMPTED, State.SWAPPED))
}


@dataclass(frozen=True, slots=True)
class Sort:
    key: Callable[[RequestRow], Any]
    descending: bool = False


SORTS: dict[str, Sort] = {
    "state": Sort(lambda r: (RANKS.get(r.state, len(RANKS)), r.position or 0, -r.age_s)),
    "age": Sort(lambda r: r.age_s, descending=True),
    "wait": Sort(lambda r: r.wait_s, descending=True),
    "tokens": Sort(lambda r: r.completion_tokens, descending=True),
    "rate": Sort(lambda r: r.tokens_per_s or 0.0, descending=True),
    "pages": Sort(lambda r: r.pages, descending=True),
    "nice": Sort(lambda r: r.nice),
    "user": Sort(lambda r: r.user),
    "id": Sort(lambda r: r.id),
}


@dataclass(frozen=True, slots=True)
class Order:
    """How rows are sorted. `frozen` holds the ids in the order in which a person froze them."""

    by: str = "state"
    frozen: tuple[str, ...] | None = None

    def next(self) -> Order:
        names = list(SORTS)
        return Order(names[(names.index(self.by) + 1) % len(names)])


def arrange(rows: Sequence[RequestRow], order: Order) -> tuple[RequestRow, ...]:
    """The rows in order; the same rows always give the same order. Frozen ids keep their places, others follow."""
    sort = SORTS[order.by]
    arranged = sorted(sorted(rows, key=lambda r: r.id), key=sort.key, reverse=sort.descending)
    if order.frozen is not None:
        places = {id: place for place, id in enumerate(order.frozen)}
        arranged.sort(key=lambda r: places.get(r.id, len(places)))
    return tuple(arranged)
