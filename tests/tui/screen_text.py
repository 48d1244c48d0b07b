"""What stands on an app's screen, as lines of text, taken from Textual's own screenshot."""

from __future__ import annotations

import html
import re

from textual.app import App

_TEXT = re.compile(
    r'<text class="[^"]*" x="([\d.]+)" y="[\d.]+" textLength="[\d.]+" clip-path="[^"]*line-(\d+)\)">([^<]*)<'
)
CELL = 12.2  # width of a character in the screenshot


def screen_text(app: App[None]) -> str:
    """Trailing spaces removed; blank lines kept."""
    width, height = app.size
    rows = [[" "] * width for _ in range(height)]
    for x, number, text in _TEXT.findall(app.export_screenshot()):
        column = round(float(x) / CELL)
        for offset, character in enumerate(html.unescape(text).replace("\xa0", " ")):
            if int(number) < height and column + offset < width:
                rows[int(number)][column + offset] = character
    return "\n".join("".join(row).rstrip() for row in rows)
