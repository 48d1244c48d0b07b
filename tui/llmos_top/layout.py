"""Which form of the overview suits a terminal. No size is refused."""

from __future__ import annotations

from enum import StrEnum

PANELS_WIDTH, PANELS_HEIGHT = 110, 30
SHORT_HEIGHT = 15
TINY_HEIGHT = 8
SUMMARY_LINES, SHORT_SUMMARY_LINES = 6, 2


class Form(StrEnum):
    """`full` has bordered panels; `compact` a few lines above the table; `short` two lines and no event line."""

    FULL = "full"
    COMPACT = "compact"
    SHORT = "short"


def form_for(width: int, height: int) -> Form:
    if height < SHORT_HEIGHT:
        return Form.SHORT
    return Form.FULL if width >= PANELS_WIDTH and height >= PANELS_HEIGHT else Form.COMPACT


def summary_lines(form: Form, height: int) -> int:
    """How many lines stand above the table when there are no panels; a low terminal keeps half for the table."""
    if form is Form.SHORT:
        return SHORT_SUMMARY_LINES if height >= TINY_HEIGHT else 0
    return min(SUMMARY_LINES, max(SHORT_SUMMARY_LINES, height // 2 - 4))
