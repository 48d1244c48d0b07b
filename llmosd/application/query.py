"""Reading `llmos.db`, with the daemon running or not: canned queries, and any SQL that only reads.

Every query opens the file read-only, fetches all and closes at once: a reader that lingers would keep the write-ahead
log from being reset.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from llmosd.application.migrate import StoreError
from llmosd.errors import InvalidRequest, NotFound
from llmosd.prediction.estimators import percentile

LIMIT_S = 30.0
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


REQUESTS = """
SELECT id, user, model, state, nice, prompt_tokens, completion_tokens, created_at,
  queued_ns / 1e6 AS queued_ms, prefill_ns / 1e6 AS prefill_ms, decode_ns / 1e6 AS decode_ms,
  preempted_ns / 1e6 AS preempted_ms, swapped_ns / 1e6 AS swapped_ms, other_ns / 1e6 AS other_ms,
  total_ns / 1e6 AS total_ms, ttft_ns / 1e6 AS ttft_ms,
  ended_at, n, preemptions, finish, error, label, page_ns / 1e9 AS page_s, reused_tokens,
  queued_slots_ns / 1e6 AS queued_slots_ms, queued_pages_ns / 1e6 AS queued_pages_ms,
  queued_quota_ns / 1e6 AS queued_quota_ms, queued_policy_ns / 1e6 AS queued_policy_ms,
  queued_model_ns / 1e6 AS queued_model_ms, queued_step_ns / 1e6 AS queued_step_ms,
  tokenise_ns / 1e6 AS tokenise_ms, suspended_ns / 1e6 AS suspended_ms, paused_ns / 1e6 AS paused_ms
FROM requests WHERE created_at >= :since ORDER BY created_at, id
"""

USERS = """
SELECT user, count(*) AS requests, sum(state = 'finished') AS finished, sum(prompt_tokens) AS prompt_tokens,
  sum(completion_tokens) AS completion_tokens, sum(reused_tokens) AS reused_tokens, sum(page_ns / 1e9) AS page_s
FROM requests WHERE created_at >= :since GROUP BY user ORDER BY page_s DESC, user
"""

LATENCY = """
SELECT ttft_ns / 1e6, queued_ns / 1e6, total_ns / 1e6,
  CASE WHEN completion_tokens > n THEN decode_ns / 1e6 * n / (completion_tokens - n) END
FROM requests WHERE state = 'finished' AND ended_at >= :since
"""
LATENCIES = ("ttft", "queued", "total", "per_token")

THROUGHPUT = """
WITH ended AS (
  SELECT CAST(ended_at AS INTEGER) / 60 * 60 AS minute, sum(state = 'finished') AS finished,
    sum(state = 'cancelled') AS cancelled, sum(state = 'failed') AS failed
  FROM requests WHERE ended_at >= :since GROUP BY minute
), tokens AS (
  SELECT ts / 60000 * 60 AS minute,
    avg(CASE series WHEN 'prompt_per_s' THEN value END) AS prompt_per_s,
    avg(CASE series WHEN 'generated_per_s' THEN value END) AS generated_per_s
  FROM samples WHERE ts >= :since * 1000 AND series IN ('prompt_per_s', 'generated_per_s') GROUP BY minute
), minutes AS (SELECT minute FROM ended UNION SELECT minute FROM tokens)
SELECT CAST(minute AS REAL) AS minute_at, coalesce(finished, 0) AS finished, coalesce(cancelled, 0) AS cancelled,
  coalesce(failed, 0) AS failed, prompt_per_s, generated_per_s
FROM minutes LEFT JOIN ended USING (minute) LEFT JOIN tokens USING (minute) ORDER BY minute
"""

UTILISATION = """
SELECT CAST(ts / 60000 * 60 AS REAL) AS minute_at, series, avg(value) AS mean, max(value) AS max, count(*) AS samples
FROM samples WHERE ts >= :since * 1000 AND series NOT LIKE '%per_s' GROUP BY 1, 2 ORDER BY 1, 2
"""

# Of those that have an id or begin so, the newest with exactly that id, else the newest two: one would be a guess.
REQUEST = """
SELECT id, user, model, state, created_at, finish, error, prompt_tokens, completion_tokens, ttft_ns, preemptions,
  timeline, queued_ns, prefill_ns, decode_ns, preempted_ns, other_ns,
  queued_slots_ns, queued_pages_ns, queued_quota_ns, queued_policy_ns, queued_model_ns, queued_step_ns,
  tokenise_ns, swapped_ns, suspended_ns, paused_ns
FROM requests WHERE id = :id OR substr(id, 1, length(:id)) = :id
ORDER BY id = :id DESC, created_at DESC LIMIT 2
"""

EVENTS = "SELECT at, severity, kind, request, text FROM events WHERE at >= :since ORDER BY at, id"

CANNED = ("requests", "users", "latency", "throughput", "utilisation", "events")
_SQL = {
    "requests": REQUESTS,
    "users": USERS,
    "throughput": THROUGHPUT,
    "utilisation": UTILISATION,
    "events": EVENTS,
}


def canned(path: Path, name: str, since: float = 0.0) -> Table:
    """One of CANNED, of what happened at or after the Unix time `since`. Raises InvalidRequest, StoreError."""
    if name == "latency":
        return _latency(_read(path, LATENCY, {"since": since}))
    if name not in _SQL:
        raise InvalidRequest(f"no query {name!r}; there are {', '.join(CANNED)}", param="query")
    return _read(path, _SQL[name], {"since": since})


def sql(path: Path, text: str) -> Table:
    """Any one statement that only reads, for at most 30 s. Raises InvalidRequest for others, StoreError."""
    return _read(path, text, {})


def request(path: Path, id: str) -> dict[str, Any]:
    """The stored row, by column, of the newest request with this id, or of the only one whose id begins so.

    Raises NotFound, InvalidRequest where several begin so, StoreError.
    """
    table = _read(path, REQUEST, {"id": id})
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    if not found:
        raise NotFound(f"no request {id!r} is stored", param="id")
    if found[0]["id"] != id and len({row["id"] for row in found}) > 1:
        raise InvalidRequest(f"several stored requests begin with {id!r}: give more of the id", param="id")
    return found[0]


def parse_since(text: str, now: float | None = None) -> float:
    """Unix seconds of `90s`, `10m`, `2h`, `7d` ago, or of an ISO 8601 time (local unless it names a zone)."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return (time.time() if now is None else now) - float(match[1]) * UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidRequest(
            f"--since {text!r} is neither a duration (90s, 10m, 2h, 7d) nor an ISO time (2026-01-31T08:00)",
            param="since",
        ) from None


def _read(path: Path, statement: str, values: dict[str, Any]) -> Table:
    if not path.exists():
        raise StoreError(f"{path} does not exist yet: start the daemon once, or name its home with --home")
    started = time.monotonic()
    uri = f"file:{quote(str(path))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.set_authorizer(_only_read)
            connection.set_progress_handler(lambda: time.monotonic() - started > LIMIT_S, 100_000)
            cursor = connection.execute(statement, values)
            return Table(tuple(column[0] for column in cursor.description or ()), cursor.fetchall())
    except (sqlite3.Error, sqlite3.Warning) as exc:
        raise _explain(exc, path) from exc


def _only_read(action: int, *details: str | None) -> int:
    return sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY


def _explain(exc: Exception, path: Path) -> InvalidRequest | StoreError:
    """Which of the two sides it was: the statement, or the database."""
    message = str(exc)
    if any(word in message for word in ("not authorized", "authorization denied", "prohibited", "readonly")):
        return InvalidRequest("queries only read: use SELECT (or WITH … SELECT)", param="sql")
    if "interrupted" in message:
        return InvalidRequest(f"the query was stopped after {LIMIT_S:.0f} s; narrow it down", param="sql")
    if type(exc) is sqlite3.DatabaseError or any(word in message for word in ("unable to open", "locked", "disk I/O")):
        return StoreError(f"{path} cannot be read: {message}")
    return InvalidRequest(f"the query is wrong: {message}", param="sql")


def _latency(table: Table) -> Table:
    """Per kind of latency: how many, mean and percentiles in milliseconds; finished requests only."""
    return Table(
        ("latency", "count", "mean_ms", "p50_ms", "p95_ms", "p99_ms"),
        [_distribution(name, [row[i] for row in table.rows if row[i] is not None]) for i, name in enumerate(LATENCIES)],
    )


def _distribution(name: str, values: list[float]) -> tuple[Any, ...]:
    if not values:
        return name, 0, None, None, None, None
    values.sort()
    return name, len(values), sum(values) / len(values), *(percentile(values, q) for q in (0.5, 0.95, 0.99))
