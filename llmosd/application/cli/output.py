"""What commands print: tables and JSON on stdout, one line on stderr for an error."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmosd.application.plain import plain
from llmosd.application.query import Table
from llmosd.application.tables import as_table

_DIRECTION = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # can reorder what a terminal shows


def json(value: Any) -> None:
    """Any plain data or dataclass as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(as_table(Table(columns, rows)))


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """One `name  value` line each, names padded to the same width."""
    lines = [(name, "-" if value is None else plain(str(value))) for name, value in pairs]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}".rstrip())


def error(message: str) -> None:
    print(f"llmosd: {plain(' '.join(message.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """Without what could drive a terminal: control characters except newline and tab, and direction overrides."""
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _DIRECTION))


def for_stdout(text: str) -> str:
    """Text of a model or a user, made safe where a terminal would interpret it; exact in a pipe or file."""
    return printable(text) if sys.stdout.isatty() else text
