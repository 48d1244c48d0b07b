"""The overview: panels where there is room, a summary where there is not, and always the table of requests."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Container, Horizontal

from llmos_top import compact, panels, queueing
from llmos_top.glyphs import Glyphs
from llmos_top.items import View, items_of, title
from llmos_top.layout import Form, summary_lines
from llmos_top.state import State
from llmos_top.text import Line, line
from llmos_top.widgets.lines import Lines
from llmos_top.widgets.request_table import RequestTable
from llmosd.wire import Frame


class Overview(Container):
    """Its form is a class of the screen, so that the stylesheet decides what is visible."""

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(id="overview")
        self._glyphs = glyphs
        self.table = RequestTable(glyphs, id="requests")

    def compose(self) -> ComposeResult:
        def lines(id: str) -> Lines:
            return Lines(id=id, ascii=self._glyphs.ascii)

        with Container(id="panels"):
            with Horizontal(id="top"):
                yield from map(lines, ("scheduler", "pool", "latency"))
            with Horizontal(id="middle"):
                yield from map(lines, ("throughput", "utilisation"))
            yield lines("queueing")
        yield lines("compact")
        yield self.table

    def show(self, state: State, form: Form, view: View, instead: Sequence[Line]) -> None:
        """Paint the state's Frame; `instead` stands in the table's place while it has no rows."""
        if state.frame is not None and form is Form.FULL:
            self._show_panels(state, state.frame)
        elif state.frame is not None:
            self._show_summary(state, state.frame, form)
        self.show_table(state, view, instead)

    def show_table(self, state: State, view: View, instead: Sequence[Line]) -> None:
        frame = state.frame
        items = items_of(frame.requests, view) if frame else ()
        if frame is not None and frame.requests:
            instead = [line(("  No request is like this.  ", "dim"), ("/", "title"), (" changes the filter.", "dim"))]
        self.table.show(title(frame, items, view, self._glyphs), items, view.order, instead)

    def _show_panels(self, state: State, frame: Frame) -> None:
        for id, heading, paint in (
            ("scheduler", panels.scheduler_title(frame), panels.scheduler),
            ("pool", panels.pool_title(frame), panels.pool),
            ("latency", panels.latency_title(frame), panels.latency),
            ("throughput", "Throughput, tokens/s", panels.throughput),
            ("utilisation", "Utilisation", panels.utilisation),
            ("queueing", queueing.title(frame), queueing.panel),
        ):
            widget = self.query_one(f"#{id}", Lines)
            widget.retitle(heading)
            widget.show(paint(state, frame, widget.size.width, self._glyphs))

    def _show_summary(self, state: State, frame: Frame, form: Form) -> None:
        widget = self.query_one("#compact", Lines)
        widget.styles.height = count = summary_lines(form, self.app.size.height)
        widget.show(compact.compact(state, frame, self.app.size.width, self._glyphs)[:count])
