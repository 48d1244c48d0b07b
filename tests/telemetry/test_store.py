"""The store: durable when it says so, nothing overwritten, old data goes, failures are told and survived."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from llmosd.application.migrate import StoreError
from llmosd.application.retention import DAY, HOUR, Retention
from llmosd.application.store import Store
from llmosd.types import Ended, QueuedTime, State, TimeSplit
from llmosd.wire import EventMessage, Frame, Gpu, Host
from tests.telemetry.examples import finished, view

SECOND = 1_000_000_000


def rows(path: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, values).fetchall()


def event(text: str, at: float | None = None) -> EventMessage:
    return EventMessage("n", 1, time.time() if at is None else at, "info", "test", text)


@asynccontextmanager
async def opened(path: Path, retention: Retention | None = None) -> AsyncIterator[Store]:
    store = await Store.open(path, retention=retention)
    try:
        yield store
    finally:
        await store.close()


async def committed(store: Store) -> None:
    """An accepted request is committed together with everything added before it."""
    await store.record_accepted(view(f"marker-{time.monotonic_ns()}"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "llmos.db"


@pytest.fixture
def no_database(path: Path) -> Path:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, " * 100)
    return path


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with opened(path) as store:
        yield store


async def test_an_accepted_request_is_readable_by_others_when_the_call_returns(store: Store, path: Path) -> None:
    await store.record_accepted(view("r1", label="résumé ☕"))
    assert rows(path, "SELECT id, state, label FROM requests") == [("r1", "queued", "résumé ☕")]


async def test_many_accepted_at_once_are_all_there(store: Store, path: Path) -> None:
    await asyncio.gather(*(store.record_accepted(view(f"r{i}")) for i in range(500)))
    assert rows(path, "SELECT count(*) FROM requests") == [(500,)]


async def test_a_restored_request_is_live_again(store: Store, path: Path) -> None:
    await store.record_accepted(view("r1"))
    store.add_events([Ended(finished("r1", state=State.FAILED, error="daemon stopped"), 350)])
    await committed(store)
    await store.record_restored(view("r1", state=State.SUSPENDED, completion_tokens=7))
    read = "SELECT state, completion_tokens, ended_at, error FROM requests WHERE id = 'r1'"
    assert rows(path, read) == [("suspended", 7, None, None)]
    store.add_events([Ended(finished("r1"), 350)])
    await committed(store)
    assert rows(path, "SELECT state FROM requests WHERE id = 'r1'") == [("finished",)]


async def test_an_ended_request_has_its_time_split_and_a_late_view_does_not_undo_it(store: Store, path: Path) -> None:
    await store.record_accepted(view("r1"))
    store.add_events([Ended(finished("r1"), 350)])
    await committed(store)
    store.add_views([view("r1", state=State.DECODE)])
    await store.record_accepted(view("r1"))
    columns = "state, queued_ns, prefill_ns, decode_ns, preempted_ns, swapped_ns, other_ns, total_ns, ttft_ns, ended_at"
    (row,) = rows(path, f"SELECT {columns} FROM requests WHERE id = 'r1'")
    assert row == ("finished", 10**7, 2 * 10**7, 31 * 10**7, 5 * 10**6, 0, 5 * 10**6, 35 * 10**7, 3 * 10**7, 1000.35)


async def test_pages_held_over_time_are_kept_exactly_up_to_the_largest_integer(store: Store, path: Path) -> None:
    for id, page_ns in (("r1", 2**62 + 1), ("r2", 2**70)):
        store.add_events([Ended(finished(id, page_ns=page_ns, reused_tokens=3), 350)])
    await committed(store)
    kept = rows(path, "SELECT page_ns, reused_tokens FROM requests WHERE id LIKE 'r%' ORDER BY id")
    assert kept == [(2**62 + 1, 3), (2**63 - 1, 3)]


async def test_a_request_that_ends_before_its_acceptance_is_recorded_stays_ended(store: Store, path: Path) -> None:
    store.add_events([Ended(finished("r1"), 350)])
    await store.record_accepted(view("r1"))
    assert rows(path, "SELECT state FROM requests") == [("finished",)]


async def test_an_id_that_is_used_again_later_gets_a_row_of_its_own(store: Store, path: Path) -> None:
    store.add_events([Ended(finished("r1"), 350)])
    await store.record_accepted(view("r1", created_at=2000.0))
    assert rows(path, "SELECT state FROM requests ORDER BY created_at") == [("finished",), ("queued",)]


async def test_a_clean_stop_is_on_record_and_the_next_start_marks_the_gap(path: Path) -> None:
    for _ in range(2):
        async with opened(path):
            pass
    assert rows(path, "SELECT count(*), count(stopped_at) FROM runs") == [(2, 2)]
    ((start, end, why),) = rows(path, "SELECT * FROM gaps")
    assert start <= end and why == "daemon stopped"
    assert rows(path, "SELECT severity, kind FROM events") == [("info", "daemon.gap")]


async def test_what_is_unfinished_at_a_clean_stop_reads_failed_and_its_times_still_sum(path: Path) -> None:
    store = await Store.open(path)
    created = time.time() - 5
    store.add_views(
        [view("r1", created_at=created, state=State.DECODE, times=TimeSplit(1, 2, 3, 4, 50, QueuedTime(1), 5, 6))]
    )
    await store.close()
    parts = "queued_ns + prefill_ns + decode_ns + preempted_ns + other_ns"
    ((state, error, total, parts_sum),) = rows(path, f"SELECT state, error, total_ns, {parts} FROM requests")
    assert state == "failed" and error.startswith("daemon stopped at 20")
    assert total == parts_sum >= 5 * SECOND


async def test_frames_become_rows_and_samples(store: Store, path: Path) -> None:
    now = int(time.time())
    at, ts = now + 0.25, now * 1000 + 250
    host = Host(cpus=2, cpu=0.5, memory_used=1, memory_total=4, gpus=(Gpu("g", 0.25, 1, 2),))
    store.add_frame(Frame("n", 7, at, host=host, loop_lag_p99_ms=3.0))
    await committed(store)
    assert rows(path, "SELECT ts, seq, payload ->> '$.node' FROM frames") == [(ts, 7, "n")]
    samples = dict(rows(path, "SELECT series, value FROM samples WHERE ts = ?", ts))
    assert (samples["cpu"], samples["memory"], samples["gpu0"], samples["loop_lag_ms"]) == (0.5, 0.25, 0.25, 3.0)


async def test_buffered_rows_are_committed_within_about_a_second_without_being_asked(store: Store, path: Path) -> None:
    store.add_event(event("alone"))
    for _ in range(600):
        if rows(path, "SELECT count(*) FROM events") == [(1,)]:
            break
        await asyncio.sleep(0.1)
    assert rows(path, "SELECT text FROM events") == [("alone",)]


async def test_hostile_text_is_stored_without_harm(store: Store, path: Path) -> None:
    hostile = "'; DROP TABLE requests; --\x1b[2J\x00\ud800"
    await store.record_accepted(view("r1", user=hostile, label=hostile))
    await store.record_accepted(view("r2"))
    ((user,),) = rows(path, "SELECT user FROM requests WHERE id = 'r1'")
    assert user == "'; DROP TABLE requests; --\x1b[2J\x00?"


async def test_while_the_database_cannot_be_written_callers_are_told_and_later_it_is_made_up_for(
    store: Store, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("ALTER TABLE events RENAME TO gone")
        store.add_event(event("lost"))
        with pytest.raises(StoreError, match="cannot be recorded"):
            await store.record_accepted(view("r1"))
        other.execute("ALTER TABLE gone RENAME TO events")
    await store.record_accepted(view("r2"))
    assert rows(path, "SELECT id FROM requests ORDER BY id") == [("r1",), ("r2",)]
    assert store.lost == 1


async def test_after_closing_nothing_is_accepted(path: Path) -> None:
    async with opened(path) as store:
        pass
    with pytest.raises(StoreError, match="stopping"):
        await store.record_accepted(view("r1"))


async def test_frames_thin_out_with_age_and_everything_has_an_end(store: Store, path: Path) -> None:
    now = int(time.time())
    for age, count in ((0, 30), (2 * HOUR, 30), (2 * DAY, 120), (8 * DAY, 30)):
        for second in range(count):
            store.add_frame(Frame("n", second, float(now - age + second)))
    store.add_event(event("old", now - 8 * DAY))
    store.add_event(event("new", now - DAY))
    store.add_events([Ended(finished("old", created_at=now - 31.0 * DAY), 0)])
    store.add_events([Ended(finished("new", created_at=now - 29.0 * DAY), 0)])
    await committed(store)
    await store.prune(now)

    def kept(age: int) -> int:
        begin = (now - age) * 1000
        return int(rows(path, "SELECT count(*) FROM frames WHERE ts BETWEEN ? AND ?", begin, begin + 200_000)[0][0])

    assert [kept(age) for age in (0, 2 * HOUR, 2 * DAY, 8 * DAY)] == [30, 3, 2, 0]
    assert rows(path, "SELECT count(*) FROM samples WHERE ts < ?", (now - 7 * DAY) * 1000) == [(0,)]
    assert rows(path, "SELECT text FROM events") == [("new",)]
    assert rows(path, "SELECT id FROM requests WHERE id IN ('old', 'new')") == [("new",)]


async def test_the_size_is_bounded_and_free_pages_go_back_to_the_file_system(path: Path) -> None:
    now = time.time()
    async with opened(path, Retention(max_bytes=2 << 20)) as store:
        for second in range(1000):
            store.add_frame(Frame("n" * 20_000, second, now - 1000 + second))
        await committed(store)
        for _ in range(60):
            await store.prune(now)
        pages, free, newest = (
            rows(path, statement)[0][0]
            for statement in ("PRAGMA page_count", "PRAGMA freelist_count", "SELECT max(seq) FROM frames")
        )
        assert (pages - free) * 4096 <= 2 << 20 and free <= 1000
        assert newest == 999  # the oldest go first


async def test_a_file_that_is_no_database_is_refused_with_what_to_do(no_database: Path) -> None:
    with pytest.raises(StoreError, match=r"damaged.*move it away"):
        await Store.open(no_database)


async def test_a_home_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StoreError, match="cannot be opened"):
        await Store.open(tmp_path / "home" / "llmos.db")
