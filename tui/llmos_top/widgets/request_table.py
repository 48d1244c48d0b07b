"""The table of requests. The selection belongs to a request or branch, not to a place: rows may move under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.message import Message
from textual.strip import Strip

from llmos_top.glyphs import Glyphs
from llmos_top.items import Item
from llmos_top.rows import MARGIN, SORTS, Column, Order, columns_for, header_line, row_line
from llmos_top.text import Line
from llmos_top.widgets.lines import Palette

WHEEL = 3  # rows


class RequestTable(Palette):
    """A header line, then one line a request, or other Lines where there is none. It scrolls by its selection alone."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor"}

    class SortBy(Message):
        """A column's title was clicked."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, glyphs: Glyphs, *, id: str) -> None:
        super().__init__(id=id)
        self._glyphs, self.ascii = glyphs, glyphs.ascii
        self.items: tuple[Item, ...] = ()
        self._order = Order()
        self._instead: tuple[Line, ...] = ()
        self._heading = ""
        self._top = 0  # the first row in sight
        self._cursor = 0  # where the selected item was last seen
        self._selected_key: str | None = None

    @property
    def selected(self) -> Item | None:
        """What is under the cursor."""
        return self.items[self._cursor] if self.items else None

    @property
    def page(self) -> int:
        """How many rows are in sight."""
        return max(1, self.size.height - 1)

    def show(self, title: str, items: Sequence[Item], order: Order, instead: Sequence[Line]) -> None:
        """Paint `items`, already in order; without any, paint `instead`."""
        new = (tuple(items), order, tuple(instead))
        changed = new != (self.items, self._order, self._instead)
        self._heading, (self.items, self._order, self._instead) = title, new
        places = {item.key: place for place, item in enumerate(self.items)}
        self._select(places.get(self._selected_key or "", self._cursor), repaint=changed)

    def move(self, rows: int) -> None:
        """Move the cursor by `rows`, as far as there are any."""
        self._select(self._cursor + rows)

    def _select(self, place: int, *, repaint: bool = True) -> None:
        """Put the cursor on the row at `place`, or the nearest there is, and bring it into sight."""
        self._cursor = max(0, min(len(self.items) - 1, place))
        self._selected_key = self.items[self._cursor].key if self.items else None
        top = min(self._top, max(0, len(self.items) - self.page))
        self._top = min(max(top, self._cursor - self.page + 1), self._cursor)
        hidden = len(self.items) > self.page
        last = min(len(self.items), self._top + self.page)
        self.retitle(f"{self._heading}  rows {self._top + 1} to {last}" if hidden else self._heading)
        if repaint:
            self.refresh()

    def render_line(self, y: int) -> Strip:
        if not self.items:
            return self.strip(self._instead[y] if y < len(self._instead) else ())
        columns = self._columns()
        if y == 0:
            return self.strip(header_line(columns, self._order, self._glyphs))
        index = self._top + y - 1
        if index >= len(self.items):
            return self.strip(())
        selected = index == self._cursor
        style = self.get_component_rich_style("table--cursor") if selected else None
        item = self.items[index]
        spans = row_line(item.row, columns, self._glyphs, selected=selected, depth=item.depth)
        return self.strip(spans, style)

    def _columns(self) -> tuple[Column, ...]:
        depth = max((item.depth for item in self.items), default=0)
        return columns_for(self.size.width, [item.row for item in self.items], depth)

    def on_resize(self) -> None:
        self._select(self._cursor)

    def on_mouse_scroll_down(self) -> None:
        self.move(WHEEL)

    def on_mouse_scroll_up(self) -> None:
        self.move(-WHEEL)

    def on_click(self, event: events.Click) -> None:
        """Select a row, or sort by the column whose title was hit."""
        spot = event.get_content_offset(self)
        if spot is None or not self.items:
            return
        if spot.y == 0:
            self._sort_by_title_at(spot.x)
        elif self._top + spot.y <= len(self.items):
            self._select(self._top + spot.y - 1)

    def _sort_by_title_at(self, x: int) -> None:
        edge = MARGIN
        for column in self._columns():
            edge += column.width + 1
            if x < edge:
                if column.name in SORTS:
                    self.post_message(self.SortBy(column.name))
                return
