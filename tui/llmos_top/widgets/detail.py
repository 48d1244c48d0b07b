"""One request over the overview, as the daemon tells of it once a second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.markup import escape
from textual.screen import ModalScreen

from llmos_top.detail import detail
from llmos_top.glyphs import Glyphs
from llmos_top.text import Line, clean, line
from llmos_top.widgets.lines import Lines
from llmosd.application.listing import RequestDetail
from llmosd.errors import LlmosError

EVERY_S = 1.0


class Detail(ModalScreen[None]):
    """`load` asks for it; what goes wrong is said above what was last known."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss(None)", "close")]

    def __init__(self, title: str, load: Callable[[], Awaitable[RequestDetail]], glyphs: Glyphs) -> None:
        super().__init__()
        self._heading, self._load, self._glyphs = title, load, glyphs
        self._known: RequestDetail | None = None
        self._trouble: Line | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="detail"):
            yield Lines(id="lines", ascii=self._glyphs.ascii)

    def on_mount(self) -> None:
        self.query_one("#detail").border_title = escape(self._heading)
        self.set_interval(EVERY_S, self._refresh)
        self._refresh()

    def on_lines_resized(self) -> None:
        self._paint()

    def _refresh(self) -> None:
        self.run_worker(self._ask(), exclusive=True)

    async def _ask(self) -> None:
        try:
            self._known, self._trouble = await self._load(), None
        except LlmosError as exc:
            self._trouble = line((clean(exc.message), "bad"))
        self._paint()

    def _paint(self) -> None:
        lines = [] if self._trouble is None else [self._trouble]
        for widget in self.query(Lines):  # none while the screen is being built or torn down
            width = widget.size.width
            if self._known is not None and width > 0:
                lines += detail(self._known, width, self._glyphs)
            widget.styles.height = len(lines)
            widget.show(lines)
