"""A widget that paints Lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from llmos_top.text import Line, crop, to_ascii

ROLES = ("label", "value", "good", "warn", "bad", "dim", "accent", "graph", "title")


def to_strip(spans: Line, width: int, styles: dict[str, Style], *, ascii: bool) -> Strip:
    """One terminal line of exactly `width` cells."""
    if ascii:
        spans = tuple((to_ascii(text), role) for text, role in spans)
    cut = crop(spans, width)
    return Strip([Segment(text, styles.get(role) or styles[""]) for text, role in cut], width)


class Lines(Widget):
    """Shows the Lines it was last given; a role's colour is the component style `lines--<role>`."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"lines--{role}" for role in ROLES}

    def __init__(self, *, id: str, title: str = "", ascii: bool = False) -> None:
        super().__init__(id=id)
        self.border_title = title or None
        self._ascii = ascii
        self._lines: tuple[Line, ...] = ()

    def show(self, lines: Sequence[Line]) -> None:
        """Repaint the lines that differ from what is on screen."""
        old, self._lines = self._lines, tuple(lines)
        for y in range(max(len(old), len(self._lines))):
            if old[y : y + 1] != self._lines[y : y + 1]:
                self.refresh(Region(0, y, self.size.width, 1))

    def retitle(self, title: str) -> None:
        """Change the border's title, only when it is another: that repaints the border."""
        title = to_ascii(title) if self._ascii else title
        if self.border_title != title:
            self.border_title = title

    def render_line(self, y: int) -> Strip:
        spans = self._lines[y] if y < len(self._lines) else ()
        return to_strip(spans, self.size.width, role_styles(self), ascii=self._ascii)


def role_styles(widget: Widget) -> dict[str, Style]:
    """The theme's style of each role inside `widget`; Textual caches them."""
    styles = {role: widget.get_component_rich_style(f"lines--{role}") for role in ROLES}
    styles[""] = widget.rich_style
    return styles
