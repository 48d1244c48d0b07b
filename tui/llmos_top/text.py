"""Text as terminal cells: cleaned of control characters, measured by cell width, cut, padded and put side by side.

A Line is spans of (text, role). Roles name a meaning (`good`, `warn`, `bad`, `dim`, …); the theme gives them colours.
Nothing here makes markup, so nothing a user wrote can become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size

Span = tuple[str, str]
Line = tuple[Span, ...]

# C0, DEL and C1 controls; line separators; zero-width and bidirectional marks, which reorder a terminal's line.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def clean(text: str) -> str:
    """`text` with everything that could steer a terminal replaced by a space, runs of white space made one."""
    return " ".join(_UNSAFE.sub(" ", text).split())


def fit(text: str, width: int, align: str = "<") -> str:
    """Exactly `width` cells of `text`: padded as `align` says (< or >), or cut at the end with an ellipsis."""
    excess = cell_len(text) - width
    if excess > 0:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    return text + " " * -excess if align == "<" else " " * -excess + text


def fit_ends(text: str, width: int) -> str:
    """As `fit`, but keeps beginning and end: commands take an id's beginning, numbered ids differ at the end."""
    if cell_len(text) <= width or width <= 0:
        return fit(text, width)
    tail = text
    while cell_len(tail) > (width - 1) // 3:
        tail = tail[1:]
    return set_cell_size(text, width - 1 - cell_len(tail)) + "…" + tail


_ASCII = str.maketrans(
    {"–": "-", "−": "-", "…": "~", "×": "x", "·": "|", "±": "+-", "λ": "lambda", "μ": "mu", "ρ": "rho", "≥": ">="}
)


def to_ascii(text: str) -> str:
    """`text` for a terminal without Unicode: what the monitor itself writes is spelt out, the rest becomes ?."""
    return "".join(c if c.isascii() else "?" * cell_len(c) for c in text.translate(_ASCII))


def line(*spans: Span | str) -> Line:
    """A Line; a bare string is a span without a role."""
    return tuple((span, "") if isinstance(span, str) else span for span in spans)


def width_of(spans: Iterable[Span]) -> int:
    return sum(cell_len(text) for text, _ in spans)


def plain(spans: Iterable[Span]) -> str:
    return "".join(text for text, _ in spans)


def crop(spans: Line, width: int) -> Line:
    """Exactly `width` cells: cut or padded at the end."""
    out: list[Span] = []
    room = width
    for text, role in spans:
        if room <= 0:
            break
        cells = cell_len(text)
        out.append((text if cells <= room else set_cell_size(text, room), role))
        room -= min(cells, room)
    return (*out, (" " * room, "")) if room > 0 else tuple(out)


def flow(chunks: Iterable[Line], width: int, gap: int = 2) -> Line:
    """As many of `chunks` as fit whole, in order, `gap` cells apart; only the first is cut. Empty ones do not count."""
    out: list[Span] = []
    used = 0
    for chunk in filter(width_of, chunks):
        if not out:
            out.extend(chunk if width_of(chunk) <= width else crop(chunk, width))
            used = width_of(out)
            continue
        used += gap + width_of(chunk)
        if used > width:
            break
        out.extend(((" " * gap, ""), *chunk))
    return tuple(out)


def ends(left: Line, right: Line, width: int) -> Line:
    """`left` and `right` at the two ends of a line; where both do not fit, `left` is cut."""
    room = width - width_of(right)
    return (*crop(left, room), *right) if room > 0 else crop(right, width)
