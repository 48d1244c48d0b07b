"""The lines of the table: requests, or a tree in which users and sessions are lines too. A key acts on either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llmos_top.filter import Filter
from llmos_top.glyphs import LETTERS, Glyphs
from llmos_top.numbers import NONE
from llmos_top.rows import SORTS, Order, arrange
from llmos_top.text import clean
from llmosd.wire import Frame, RequestRow


@dataclass(frozen=True, slots=True)
class View:
    """How a person wants to see the requests."""

    order: Order = field(default_factory=Order)
    filter: Filter = field(default_factory=Filter)
    tree: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One line. The cursor stays with its `key`. `members` are the requests below it, or the one that it is;
    `selects` the fields of a command about them; `words` how they are called.
    """

    key: str
    row: RequestRow
    members: tuple[RequestRow, ...]
    selects: Mapping[str, Any]
    words: str
    depth: int = 0

    @property
    def is_branch(self) -> bool:
        return self.row.state == ""


def items_of(rows: Sequence[RequestRow], view: View) -> tuple[Item, ...]:
    """What the filter lets through, in order."""
    shown = arrange([row for row in rows if view.filter.matches(row)], view.order)
    return _tree(shown, view.filter) if view.tree and shown else tuple(_leaf(row) for row in shown)


def _leaf(row: RequestRow, depth: int = 0) -> Item:
    return Item(row.id, row, (row,), {"ids": [row.id]}, clean(row.id), depth)


def _tree(rows: Sequence[RequestRow], filter: Filter) -> tuple[Item, ...]:
    """All, users, sessions of more than one request, requests. Users and sessions by name, requests in their order."""
    items = [_branch("all", "all", rows, filter, {}, "", 0)]
    for user, of_user in groupby(sorted(rows, key=lambda r: r.user), lambda r: r.user):
        mine = list(of_user)
        about = f"of {clean(user)}" if user else "without a user"
        items.append(_branch(f"user {user}", clean(user) or NONE, mine, filter, {"user": user}, about, 1))
        sessions = {name: list(of) for name, of in groupby(sorted(mine, key=_session), _session)}
        for name, together in sessions.items():
            if len(together) > 1:
                fields, about = {"user": user, "session": name}, f"of session {clean(name)}"
                items.append(_branch(f"session {user} {name}", clean(name), together, filter, fields, about, 2))
                items += [_leaf(row, 3) for row in together]
        items += [_leaf(row, 2) for row in mine if len(sessions[_session(row)]) == 1]
    return tuple(items)


def _session(row: RequestRow) -> str:
    return row.session or row.id


def _branch(
    key: str, title: str, rows: Sequence[RequestRow], filter: Filter, fields: Mapping[str, str], about: str, depth: int
) -> Item:
    """Selects by fields, so that what comes meanwhile is meant too; by ids where only those tell what is shown."""
    by_fields = {**filter.fields, **fields}
    selects: Mapping[str, Any] = by_fields if by_fields and not filter.words else {"ids": [row.id for row in rows]}
    words = f"{len(rows)} request{'' if len(rows) == 1 else 's'} {about}".rstrip()
    return Item(key, _sum(f"{title} ({len(rows)})", rows), tuple(rows), selects, words, depth)


def _sum(title: str, rows: Sequence[RequestRow]) -> RequestRow:
    """What the requests have together; no state of its own."""
    states = [LETTERS.get(row.state, "?") for row in rows]
    return RequestRow(
        id=title,
        state="",
        nice=0,
        user="",
        position=None,
        wait_s=max(row.wait_s for row in rows),
        ttft_s=None,
        age_s=max(row.age_s for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        max_tokens=0,
        tokens_per_s=sum(row.tokens_per_s or 0.0 for row in rows),
        pages=sum(row.pages for row in rows),
        preemptions=sum(row.preemptions for row in rows),
        label=" ".join(f"{states.count(letter)}{letter}" for letter in LETTERS.values() if letter in states),
    )


def title(frame: Frame | None, items: Sequence[Item], view: View, glyphs: Glyphs) -> str:
    """Counts, filter, sorting and order of the table."""
    if frame is None:
        return "Requests"
    queue, order = frame.queue, view.order
    arrow = glyphs.descending if SORTS[order.by].descending else glyphs.ascending
    more = f", {frame.requests_left_out} not listed" if frame.requests_left_out else ""
    shown = sum(not item.is_branch for item in items)
    parts = [
        f"Requests {shown if shown == len(frame.requests) else f'{shown} of {len(frame.requests)}'}",
        f" ({queue.running} run, {queue.waiting} wait{more})  sort {order.by.upper()} {arrow}",
        "  order frozen" if order.frozen is not None else "",
        "  tree" if view.tree else "",
        f"  filter {clean(str(view.filter))}" if str(view.filter) else "",
    ]
    return "".join(parts)
