"""A widget that paints Lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.markup import escape
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from llmos_top.text import Line, crop, to_ascii

ROLES = ("label", "value", "good", "warn", "bad", "dim", "accent", "graph", "title")


class Palette(Widget):
    """A widget that knows its theme's style of each role; computed once, as Textual does it anew for each call."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"lines--{role}" for role in ROLES}
    _palette: dict[str, Style] | None = None
    _title = ""
    ascii = False  # paint nothing outside ASCII

    @property
    def palette(self) -> dict[str, Style]:
        if self._palette is None:
            self._palette = {role: self.get_component_rich_style(f"lines--{role}") for role in ROLES}
            self._palette[""] = self.rich_style
        return self._palette

    def strip(self, spans: Line, style: Style | None = None) -> Strip:
        """One terminal line, exactly as wide as the widget; `style` replaces those of the roles."""
        if self.ascii:
            spans = tuple((to_ascii(text), role) for text, role in spans)
        cut, palette = crop(spans, self.size.width), self.palette
        return Strip([Segment(text, style or palette.get(role, palette[""])) for text, role in cut], self.size.width)

    def retitle(self, title: str) -> None:
        """Change the border's title, only when it is another: that repaints the border. It is no markup."""
        title = to_ascii(title) if self.ascii else title
        if self._title != title:
            self._title, self.border_title = title, escape(title)

    def notify_style_update(self) -> None:
        self._palette = None
        super().notify_style_update()


class Lines(Palette):
    """Shows the Lines it was last given; a role's colour is the component style `lines--<role>`."""

    class Resized(Message):
        """Its Lines were made for another width."""

    def __init__(self, *, id: str, ascii: bool) -> None:
        super().__init__(id=id)
        self.ascii = ascii
        self._lines: tuple[Line, ...] = ()

    def show(self, lines: Sequence[Line]) -> None:
        """Repaint the lines that differ from what is on screen."""
        old, self._lines = self._lines, tuple(lines)
        for y in range(max(len(old), len(self._lines))):
            if old[y : y + 1] != self._lines[y : y + 1]:
                self.refresh(Region(0, y, self.size.width, 1))

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def render_line(self, y: int) -> Strip:
        spans = self._lines[y] if y < len(self._lines) else ()
        return self.strip(spans)
