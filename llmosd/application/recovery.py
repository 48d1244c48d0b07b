"""Before a daemon writes to the database it is made or migrated, and the last daemon's end is put on record."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from llmosd.application.migrate import StoreError, migrate

# The time that no state accounts for, from the last stored sight of the request to the daemon's end, is `other`.
FAIL_UNFINISHED = """
UPDATE requests SET
  state = 'failed', error = 'daemon stopped at ' || :iso, ended_at = max(created_at, :at),
  other_ns = other_ns + max(0, CAST((:at - created_at) * 1e9 AS INTEGER) - total_ns),
  total_ns = max(total_ns, CAST((:at - created_at) * 1e9 AS INTEGER))
WHERE ended_at IS NULL
"""


def iso(at: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def open_run(path: Path, now: float) -> int:
    """Make or migrate the database, end what the last daemon left, and return the number of this daemon's run.

    Only one daemon at a time may use a home: what is unfinished here is taken for dead. Raises StoreError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{path} cannot be opened: {exc}") from exc
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only has an effect before the first table
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection)
        return _begin(connection, now)
    except sqlite3.OperationalError as exc:  # locked, full, read-only
        raise StoreError(f"{path} cannot be used: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise StoreError(
            f"{path} is damaged ({exc}): move it away to start afresh; `sqlite3 {path} .recover` reads what is left"
        ) from exc
    finally:
        connection.close()


def _begin(connection: sqlite3.Connection, now: float) -> int:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        last = connection.execute("SELECT seen_at, stopped_at FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        if last:
            _end_run(connection, last[0], last[1], now)
        insert = "INSERT INTO runs (pid, started_at, seen_at) VALUES (?, ?, ?)"
        return int(connection.execute(insert, (os.getpid(), now, now)).lastrowid or 0)


def _end_run(connection: sqlite3.Connection, seen_at: float, stopped_at: float | None, now: float) -> None:
    ended_at = seen_at if stopped_at is None else stopped_at
    failed = connection.execute(FAIL_UNFINISHED, {"at": ended_at, "iso": iso(ended_at)}).rowcount
    severity, why = ("info", "daemon stopped") if stopped_at is not None else ("warning", "daemon killed")
    text = f"{why} at {iso(ended_at)}; {failed} unfinished requests failed"
    connection.execute("INSERT INTO gaps VALUES (?, ?, ?)", (ended_at, max(ended_at, now), why))
    connection.execute(
        "INSERT INTO events (at, severity, kind, text) VALUES (?, ?, 'daemon.gap', ?)", (now, severity, text)
    )
