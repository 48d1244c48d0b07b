"""What commands print: tables and JSON on stdout, one line on stderr for an error."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

_DIRECTION = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # can reorder what a terminal shows


def json(value: Any) -> None:
    """Any plain data or dataclass as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns: numbers to the right, text to the left, None as a dash."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *body, strict=True)]
    numeric = [bool(body) and all(_is_number(cell) for cell in column) for column in zip(*body, strict=True)]
    for line in (list(columns), *body):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric or [False] * len(widths), strict=True)
        )
        print("  ".join(cells).rstrip())


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """One `name  value` line each, names padded to the same width."""
    lines = [(name, _cell(value)) for name, value in pairs]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}".rstrip())


def error(message: str) -> None:
    print(f"llmosd: {printable(' '.join(message.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """Without what could drive a terminal: control characters except newline and tab, and direction overrides."""
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _DIRECTION))


def for_stdout(text: str) -> str:
    """Text of a model or a user, made safe where a terminal would interpret it; exact in a pipe or file."""
    return printable(text) if sys.stdout.isatty() else text


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}"
    return for_stdout(str(value)).replace("\n", " ")


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).lstrip("-").isdigit()
