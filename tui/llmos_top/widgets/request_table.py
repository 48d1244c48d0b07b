"""The table of requests. The selection belongs to an id, not to a place: rows may move under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from llmos_top.glyphs import Glyphs
from llmos_top.rows import MARGIN, SORTS, Order, columns_for, header_line, row_line
from llmos_top.text import Line
from llmos_top.widgets.lines import Palette
from llmosd.wire import RequestRow


class RequestTable(Palette, ScrollView, can_focus=False):
    """A header line, then one line a request, or other Lines where there is none."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor"}

    class SortBy(Message):
        """A column's title was clicked."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, glyphs: Glyphs, *, id: str) -> None:
        super().__init__(id=id)
        self._glyphs, self.ascii = glyphs, glyphs.ascii
        self.rows: tuple[RequestRow, ...] = ()
        self._order = Order()
        self._instead: tuple[Line, ...] = ()
        self._cursor = 0  # where the selected id was last seen
        self._selected_id: str | None = None

    @property
    def selected(self) -> RequestRow | None:
        """The row under the cursor."""
        return self.rows[self._cursor] if self.rows else None

    @property
    def page(self) -> int:
        """How many rows are in sight."""
        return max(1, self.size.height - 1)

    def show(self, rows: Sequence[RequestRow], order: Order, instead: Sequence[Line]) -> None:
        """Paint `rows`, already in order; without any, paint `instead`."""
        known = (self.rows, self._order, self._instead)
        self.rows, self._order, self._instead = tuple(rows), order, tuple(instead)
        if known == (self.rows, self._order, self._instead):
            return
        self._follow_selection()
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self.refresh()

    def move(self, rows: int) -> None:
        """Move the cursor by `rows`, as far as there are any, and keep it in sight."""
        self._cursor = max(0, min(len(self.rows) - 1, self._cursor + rows))
        self._selected_id = self.rows[self._cursor].id if self.rows else None
        top = round(self.scroll_y)
        wanted = min(max(top, self._cursor - self.page + 1), self._cursor)
        if wanted != top:
            self.scroll_to(y=wanted, animate=False, immediate=True)
        self.refresh()

    def _follow_selection(self) -> None:
        """To where the selected id is now; when it is gone, stay in place on the row that came there."""
        places = {row.id: place for place, row in enumerate(self.rows)}
        self._cursor = places.get(self._selected_id or "", min(self._cursor, max(0, len(self.rows) - 1)))
        self._selected_id = self.rows[self._cursor].id if self.rows else None

    def render_line(self, y: int) -> Strip:
        if not self.rows:
            return self.strip(self._instead[y] if y < len(self._instead) else ())
        columns = columns_for(self.scrollable_content_region.width, self.rows)
        if y == 0:
            return self.strip(header_line(columns, self._order, self._glyphs))
        index = y - 1 + round(self.scroll_y)
        if index >= len(self.rows):
            return self.strip(())
        selected = index == self._cursor
        style = self.get_component_rich_style("table--cursor") if selected else None
        return self.strip(row_line(self.rows[index], columns, self._glyphs, selected=selected), style)

    def on_resize(self) -> None:
        self.move(0)

    def on_click(self, event: events.Click) -> None:
        """Select a row, or sort by the column whose title was hit."""
        spot = event.get_content_offset(self)
        if spot is None or not self.rows:
            return
        if spot.y > 0:
            self.move(spot.y - 1 + round(self.scroll_y) - self._cursor)
            return
        edge = MARGIN
        for column in columns_for(self.scrollable_content_region.width, self.rows):
            edge += column.width + 1
            if spot.x < edge:
                if column.name in SORTS:
                    self.post_message(self.SortBy(column.name))
                return
