"""The database `llmos.db`: one writer task, commits at most a second apart, accepted requests durable at once.

WAL with `synchronous=NORMAL`: what is committed survives the death of the process; the last commits may be lost when
the machine loses power. Readers use `llmosd.application.query`, or any SQLite tool, while the daemon runs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiosqlite

from llmosd.application.migrate import StoreError
from llmosd.application.recovery import FAIL_UNFINISHED, iso, open_run
from llmosd.application.retention import Retention
from llmosd.application.rows import (
    PUT_EVENT,
    PUT_FRAME,
    PUT_REQUEST,
    PUT_RESTORED,
    PUT_SAMPLE,
    Row,
    event_row,
    frame_row,
    request_row,
    sample_rows,
)
from llmosd.types import ENDED, Ended, Event, RequestView, State
from llmosd.wire import EventMessage, Frame

log = logging.getLogger(__name__)

PRAGMAS = "PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000; PRAGMA journal_size_limit = 67108864;"
COMMIT_S = 1.0
PRUNE_S = 60.0
PENDING_LIMIT = 10_000  # rows kept for a retry while the database cannot be written
FREE_PAGES = 1000  # kept for reuse; more are given back to the file system

Statement = tuple[str, Row]


@dataclass(slots=True)
class _Pending:
    """What the next transaction writes, and who waits for it."""

    restored: list[Row] = field(default_factory=list)
    requests: dict[tuple[str, float], Row] = field(default_factory=dict)
    frames: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    others: list[Statement] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def statements(self) -> list[tuple[str, Iterable[Row]]]:
        rows = (
            (PUT_RESTORED, self.restored),
            (PUT_REQUEST, self.requests.values()),
            (PUT_FRAME, self.frames),
            (PUT_SAMPLE, self.samples),
            (PUT_EVENT, self.events),
        )
        others = [(statement, (values,)) for statement, values in self.others]
        return [*((statement, values) for statement, values in rows if values), *others]


class Store:
    """Owned by the event loop. All `add_` methods only remember; `record_accepted` waits for the commit."""

    def __init__(self, db: aiosqlite.Connection, run: int, retention: Retention) -> None:
        self._db = db
        self._run = run
        self._retention = retention
        self._pending = _Pending()
        self._wake = asyncio.Event()
        self._closing = False
        self._pruned_at = 0.0
        self._writer = asyncio.create_task(self._write_until_closed(), name="store writer")
        self.lost = 0  # rows dropped because they could not be written

    @classmethod
    async def open(cls, path: Path, *, retention: Retention | None = None) -> Store:
        """Open for the one daemon of this home; see `recovery.open_run` for what that does. Raises StoreError."""
        run = await asyncio.to_thread(open_run, path, time.time())
        db = await aiosqlite.connect(path, isolation_level=None)
        await db.executescript(PRAGMAS)
        return cls(db, run, retention or Retention())

    async def record_accepted(self, view: RequestView) -> None:
        """Return once the request is in the write-ahead log; many callers share a transaction. Raises StoreError."""
        committed = self._commit_soon()
        self._put(view, replace=False)
        await committed

    async def record_restored(self, view: RequestView) -> None:
        """The same for a request of an earlier daemon, which is live again."""
        committed = self._commit_soon()
        self._pending.restored.append(request_row(view))
        await committed

    async def write(self, *statements: Statement) -> None:
        """The same for statements of any kind, all or none, in their order. Raises StoreError."""
        committed = self._commit_soon()
        self._pending.others += statements
        await committed

    def add_events(self, events: Iterable[Event]) -> None:
        """Keep the final view of each request that ended."""
        for event in events:
            if isinstance(event, Ended):
                self._put(event.request)

    def add_views(self, views: Iterable[RequestView]) -> None:
        """Keep how far live requests are; those that only wait are stored already."""
        for view in views:
            if view.state is not State.QUEUED and view.state not in ENDED:
                self._put(view)

    def add_frame(self, frame: Frame) -> None:
        """Keep the Frame for replay and its gauges as samples."""
        self._pending.frames.append(frame_row(frame))
        self._pending.samples.extend(sample_rows(frame))

    def add_event(self, event: EventMessage) -> None:
        self._pending.events.append(event_row(event))

    async def close(self) -> None:
        """Write what is pending, put the stop on record, close. What is unfinished by now reads failed."""
        self._closing = True
        self._wake.set()
        await self._writer
        now = time.time()
        try:
            await self._db.execute(FAIL_UNFINISHED, {"at": now, "iso": iso(now)})
            await self._db.execute("UPDATE runs SET stopped_at = ? WHERE id = ?", (now, self._run))
        except sqlite3.Error as exc:
            log.error("the daemon's stop could not be stored: %s", exc)
        finally:
            await self._db.close()

    def _commit_soon(self) -> asyncio.Future[None]:
        """Done with the next commit."""
        if self._closing:
            raise StoreError("nothing can be recorded any more: the daemon is stopping")
        committed = asyncio.get_running_loop().create_future()
        self._pending.waiting.append(committed)
        self._wake.set()
        return committed

    def _put(self, view: RequestView, *, replace: bool = True) -> None:
        key = view.id, view.created_at
        if replace or key not in self._pending.requests:
            self._pending.requests[key] = request_row(view)

    async def _write_until_closed(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._flush()
            if time.time() - self._pruned_at >= PRUNE_S:
                await self._prune_safely()
        await self._flush()

    async def _flush(self) -> None:
        """One transaction. A failure is told to those who wait, and never ends the writer."""
        pending, self._pending = self._pending, _Pending()
        try:
            await self._commit(pending)
        except Exception as exc:  # whatever it is, nobody may be left waiting
            log.error("the database cannot be written: %s", exc)
            self._failed(pending, exc)
        else:
            for future in pending.waiting:
                if not future.done():
                    future.set_result(None)

    async def _commit(self, pending: _Pending) -> None:
        await self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in pending.statements():
                await self._db.executemany(statement, rows)
            await self._db.execute("UPDATE runs SET seen_at = ? WHERE id = ?", (time.time(), self._run))
            await self._db.commit()
        except BaseException:
            await self._db.rollback()
            raise

    def _failed(self, pending: _Pending, exc: Exception) -> None:
        """Requests are written with the next transaction; telemetry of this one is lost and counted."""
        for future in pending.waiting:
            if not future.done():
                future.set_exception(StoreError(f"it cannot be recorded: {exc}"))
        self.lost += len(pending.frames) + len(pending.events)
        if len(pending.requests) + len(self._pending.requests) <= PENDING_LIMIT:
            self._pending.requests = pending.requests | self._pending.requests
        else:
            self.lost += len(pending.requests)

    async def _prune_safely(self) -> None:
        try:
            await self.prune(time.time())
        except Exception as exc:  # as above: the writer must live
            log.error("old data cannot be deleted: %s", exc)

    async def prune(self, now: float) -> None:
        """Delete what is too old or too much at Unix time `now`, and give free pages back to the file system."""
        for statement, values in self._retention.by_age(now, self._pruned_at):
            await self._db.execute(statement, values)
        self._pruned_at = now
        free = await self._number("PRAGMA freelist_count")
        used = (await self._number("PRAGMA page_count") - free) * await self._number("PRAGMA page_size")
        for statement, values in self._retention.by_size(used, await self._number("SELECT count(*) FROM frames")):
            await self._db.execute(statement, values)
        if free > FREE_PAGES:
            await self._db.executescript(f"PRAGMA incremental_vacuum({free - FREE_PAGES})")  # execute() frees one page

    async def _number(self, statement: str) -> int:
        async with self._db.execute(statement) as cursor:
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])
