"""Queries on a database that the store wrote, and their three forms of output."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llmosd.application import query
from llmosd.application.migrate import StoreError
from llmosd.application.query import Table, canned, parse_since, sql
from llmosd.application.store import Store
from llmosd.application.tables import as_csv, as_json, as_table
from llmosd.errors import InvalidRequest
from llmosd.types import Ended, State
from llmosd.wire import EventMessage, Frame, Host, Throughput
from tests.telemetry.examples import finished, view

NOW = float(int(time.time() / 60) * 60)  # the start of a minute
MUST_HAVE = (
    *("id", "user", "model", "state", "nice", "prompt_tokens", "completion_tokens", "created_at", "queued_ms"),
    *("prefill_ms", "decode_ms", "preempted_ms", "swapped_ms", "other_ms", "total_ms", "ttft_ms"),
)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Two finished requests, an older one, one that runs, one that waits; two seconds of Frames; an event."""
    path = tmp_path / "llmos.db"
    store = await Store.open(path)
    used = {"newer": {"user": "bob", "page_ns": 4_500_000_000, "reused_tokens": 7}}
    for id, ago in (("new", 0.0), ("newer", -1.0), ("old", 7200.0)):
        store.add_events([Ended(finished(id, created_at=NOW - ago, **used.get(id, {})), 0)])
    for second in range(2):
        rates = Throughput(prompt_per_s=10.0, generated_per_s=20.0 * second)
        store.add_frame(Frame("n", second, NOW + second, throughput=rates, host=Host(cpu=0.25 + 0.5 * second)))
    store.add_event(EventMessage("n", 1, NOW, "warning", "test", "beep\a\x1b[31m", request="new"))
    store.add_views([view("live", created_at=NOW + 2, state=State.DECODE, completion_tokens=3)])
    await store.record_accepted(view("waiting", created_at=NOW + 3))
    writer = path.with_name("frozen.db")  # as a reader sees it while the daemon runs: unfinished ones are unfinished
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(writer)) as target:
        source.backup(target)
    await store.close()
    return writer


def records(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_requests_have_what_scripts_rely_on(path: Path) -> None:
    found = records(canned(path, "requests"))
    assert [r["id"] for r in found] == ["old", "new", "newer", "live", "waiting"]
    assert set(MUST_HAVE) <= found[0].keys()
    assert [
        found[1][f"{part}_ms"] for part in ("queued", "prefill", "decode", "preempted", "other", "total", "ttft")
    ] == [*(10.0, 20.0, 310.0, 5.0, 5.0, 350.0, 30.0)]
    assert (found[3]["state"], found[3]["completion_tokens"], found[3]["ttft_ms"]) == ("decode", 3, None)


def test_since_cuts(path: Path) -> None:
    assert [r["id"] for r in records(canned(path, "requests", NOW + 1))] == ["newer", "live", "waiting"]


def test_latency_is_of_finished_requests(path: Path) -> None:
    found = {r["latency"]: r for r in records(canned(path, "latency"))}
    assert found["total"]["count"] == 3
    assert (found["ttft"]["p50_ms"], found["queued"]["p99_ms"]) == (30.0, 10.0)
    assert found["per_token"]["mean_ms"] == pytest.approx(310 / 31)
    assert records(canned(path, "latency", NOW + 3600))[0]["count"] == 0


def test_users_by_what_they_used(path: Path) -> None:
    found = {r["user"]: r for r in records(canned(path, "users"))}
    assert list(found) == ["bob", "alice"], "who used most first"
    assert (found["bob"]["requests"], found["bob"]["finished"], found["bob"]["page_s"]) == (1, 1, 4.5)
    assert (found["bob"]["reused_tokens"], found["alice"]["requests"], found["alice"]["page_s"]) == (7, 4, 0.0)


def test_throughput_is_per_minute(path: Path) -> None:
    *_, last = records(canned(path, "throughput"))
    assert last["minute_at"] == NOW
    assert (last["finished"], last["prompt_per_s"], last["generated_per_s"]) == (2, 10.0, 10.0)


def test_utilisation_is_per_minute_and_series(path: Path) -> None:
    (cpu,) = (r for r in records(canned(path, "utilisation")) if r["series"] == "cpu")
    assert (cpu["minute_at"], cpu["mean"], cpu["max"], cpu["samples"]) == (NOW, 0.5, 0.75, 2)


def test_events_come_in_order(path: Path) -> None:
    assert [(r["kind"], r["request"]) for r in records(canned(path, "events"))] == [("test", "new")]


def test_every_canned_query_runs_and_an_unknown_one_is_named(path: Path) -> None:
    assert all(canned(path, name).columns for name in query.CANNED)
    with pytest.raises(InvalidRequest, match="no query 'nonsense'; there are requests, users, latency"):
        canned(path, "nonsense")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM requests",
        "INSERT INTO gaps VALUES (1, 2, 'x')",
        "DROP TABLE requests",
        "CREATE TABLE t (x)",
        "PRAGMA journal_mode = DELETE",
        "ATTACH 'other.db' AS other",
        "VACUUM",
        "BEGIN EXCLUSIVE",
        "WITH a AS (SELECT 1) UPDATE requests SET user = 'x'",
    ],
)
def test_sql_that_writes_is_refused_in_words(path: Path, statement: str) -> None:
    with pytest.raises(InvalidRequest, match="queries only read"):
        sql(path, statement)
    assert len(canned(path, "requests").rows) == 5


@pytest.mark.parametrize(
    ("statement", "message"),
    [("SELEKT 1", "syntax error"), ("SELECT 1; SELECT 2", "one statement"), ("SELECT nonsense", "no such column")],
)
def test_wrong_sql_says_what_is_wrong(path: Path, statement: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        sql(path, statement)


def test_sql_reads_json_inside_frames(path: Path) -> None:
    assert sql(path, "SELECT max(payload ->> '$.host.cpu') AS cpu FROM frames") == (("cpu",), [(0.75,)])


def test_a_query_that_never_ends_is_stopped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "LIMIT_S", 0.1)
    with pytest.raises(InvalidRequest, match="stopped after"):
        sql(path, "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n")


def test_no_database_yet(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist yet"):
        canned(tmp_path / "none.db", "requests")


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"bad\.db cannot be read"):
        canned(tmp_path / "bad.db", "requests")


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5d", 129600), ("0s", 0)])
def test_since_as_a_duration(text: str, ago: float) -> None:
    assert parse_since(text, now=200_000) == 200_000 - ago


def test_since_as_a_time() -> None:
    assert parse_since("2026-01-31T08:00:00+00:00") == 1769846400
    assert parse_since("2026-01-31") == datetime(2026, 1, 31).timestamp()
    with pytest.raises(InvalidRequest, match="neither a duration"):
        parse_since("yesterday")


HOSTILE = Table(("at", "user", "n"), [(0.0, "\x1b[2J\u202e\x9b\x07", 1), (1.5, "日本\nx", None)])


def test_a_table_is_aligned_and_cannot_drive_a_terminal() -> None:
    text = as_table(HOSTILE)
    assert r"\x1b[2J\u202e\x9b\x07" in text and r"日本\nx" in text
    assert not any(c in text for c in "\x1b\u202e\x9b\x07")
    assert len(text.splitlines()) == 3


def test_json_keeps_the_value_and_escapes_it() -> None:
    text = as_json(HOSTILE)
    assert json.loads(text)[0] == {"at": 0.0, "user": "\x1b[2J\u202e\x9b\x07", "n": 1}
    assert text.isascii() and "\x1b" not in text


def test_numbers_beyond_time_and_json_are_shown_all_the_same() -> None:
    table = Table(("x_at", "y"), [(1e300, float("inf")), (float("nan"), float("nan"))])
    assert as_table(table).splitlines()[1:] == ["1e+300  inf", "   nan  nan"]
    assert json.loads(as_json(table)) == [{"x_at": 1e300, "y": None}, {"x_at": None, "y": None}]


def test_csv_reads_back() -> None:
    header, first, second = csv.reader(io.StringIO(as_csv(HOSTILE)))
    assert header == ["at", "user", "n"]
    assert first == ["0.0", r"\x1b[2J\u202e\x9b\x07", "1"] and second[2] == ""


def test_no_rows() -> None:
    assert as_table(Table(("a", "b"), [])) == "a  b"
    assert json.loads(as_json(Table(("a",), []))) == []
