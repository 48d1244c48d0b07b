"""The schema: applied once, forward only, all of a file or nothing of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmosd.application.migrate import StoreError, migrate
from llmosd.resources import data_dir


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        yield connection


def tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_the_shipped_migrations_make_strict_tables_and_are_applied_once(connection: sqlite3.Connection) -> None:
    migrate(connection)
    assert {"requests", "frames", "samples", "events", "runs", "gaps"} <= tables(connection)
    strict = connection.execute(
        "SELECT min(strict) FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 's%'"
    )
    assert strict.fetchone()[0] == 1
    before = version(connection)
    migrate(connection)
    assert version(connection) == before >= 1


def test_times_of_older_rows_sum_to_their_total_as_those_of_new_ones(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    """Until schema 4 swapped time stood beside `other`; now it is a part of it."""
    shipped = sorted(data_dir("migrations").glob("*.sql"))
    for file in shipped[:3]:
        (tmp_path / file.name).write_text(file.read_text())
    migrate(connection, tmp_path)
    counts = {"queued": 1, "prefill": 2, "decode": 3, "preempted": 4, "other": 5, "swapped": 6, "total": 21}
    texts = {"id": "r", "user": "", "model": "m", "state": "finished", "label": ""}
    numbers = dict.fromkeys(
        ("nice", "n", "prompt_tokens", "completion_tokens", "max_tokens", "created_at", "preemptions"), 0
    )
    row = {f"{name}_ns": value for name, value in counts.items()} | texts | numbers
    connection.execute(
        f"INSERT INTO requests ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
    )
    migrate(connection)
    parts = "queued_ns + prefill_ns + decode_ns + preempted_ns + other_ns"
    assert connection.execute(f"SELECT {parts}, total_ns, swapped_ns FROM requests").fetchone() == (21, 21, 6)


def test_a_broken_file_is_undone_whole_and_the_ones_before_it_stay(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE a (x INTEGER) STRICT;")
    (tmp_path / "0002_broken.sql").write_text("CREATE TABLE b (x INTEGER) STRICT; INSERT INTO b VALUES (1); SELEKT 1;")
    with pytest.raises(StoreError, match=r"0002_broken\.sql failed and was undone"):
        migrate(connection, tmp_path)
    assert not connection.in_transaction
    assert (version(connection), tables(connection)) == (1, {"a"})
    (tmp_path / "0002_broken.sql").write_text("CREATE TABLE b (x INTEGER) STRICT;")
    migrate(connection, tmp_path)
    assert (version(connection), tables(connection)) == (2, {"a", "b"})


def test_triggers_and_quoted_semicolons_pass(connection: sqlite3.Connection, tmp_path: Path) -> None:
    (tmp_path / "0001_trigger.sql").write_text(
        "CREATE TABLE a (x TEXT) STRICT;\n"
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE a SET x = x || ';'; END; -- a comment; with one"
    )
    migrate(connection, tmp_path)
    connection.execute("INSERT INTO a VALUES ('y')")
    assert connection.execute("SELECT x FROM a").fetchall() == [("y;",)]


def test_a_newer_schema_is_refused_with_what_to_do(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreError, match=r"schema 999.*upgrade llmosd"):
        migrate(connection)


def test_a_missing_number_is_refused(connection: sqlite3.Connection, tmp_path: Path) -> None:
    (tmp_path / "0002_second.sql").write_text("SELECT 1;")
    with pytest.raises(StoreError, match="0001 is missing"):
        migrate(connection, tmp_path)
