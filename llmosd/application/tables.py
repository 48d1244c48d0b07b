"""Rows as text: an aligned table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any

from llmosd.application.plain import plain
from llmosd.application.query import Table


def as_json(table: Table) -> str:
    """A list of objects. Times stay Unix seconds; what a terminal could obey is escaped (`\\u001b`)."""
    rows = [{name: _finite(cell) for name, cell in zip(table.columns, row, strict=True)} for row in table.rows]
    return json.dumps(rows, indent=2, default=repr)


def as_csv(table: Table) -> str:
    """RFC 4180 with a header line; nothing is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.columns)
    writer.writerows([plain(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows)
    return text.getvalue()


def as_table(table: Table) -> str:
    """Aligned columns; columns named `…_at` are shown as local time, numbers to three digits after the point."""
    cells = [[_cell(name, value) for name, value in zip(table.columns, row, strict=True)] for row in table.rows]
    lines = [list(table.columns), *cells]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(table.columns))]
    numeric = [all(isinstance(row[i], int | float | None) for row in table.rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(_pad(cell, width, right) for cell, width, right in zip(line, widths, numeric, strict=True)).rstrip()
        for line in lines
    )


FORMATS: dict[str, Callable[[Table], str]] = {"table": as_table, "json": as_json, "csv": as_csv}


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return _local_time(value) if name == "at" or name.endswith("_at") else f"{value:.3f}"
    return plain(value) if isinstance(value, str) else str(value)


def _local_time(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):  # no time of any calendar
        return str(unix_s)


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(cell: str) -> int:
    """Terminal columns: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)
