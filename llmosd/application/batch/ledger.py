"""Files, batches and results of lines in the database. A line with a result has been run, and is never run again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from llmosd.application.batch.job import Batch, Counts, StoredFile
from llmosd.application.store import Statement, Store


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier daemon left. `done` has for each batch the lines with a result."""

    files: list[StoredFile]
    batches: list[Batch]
    done: dict[str, set[int]]


class Ledger:
    """Writes go through the store, a transaction a call; what is read was written by a call that has returned."""

    def __init__(self, store: Store, database: Path) -> None:
        self._store = store
        self._database = database

    async def load(self) -> Kept:
        return await asyncio.to_thread(self._load)

    async def write(self, *statements: Statement) -> None:
        """All or none; in the write-ahead log when this returns. Raises StoreError."""
        await self._store.write(*statements)

    def results(self, batch: str) -> Iterator[tuple[int, bool, bytes]]:
        """(line, whether it failed, its line of the output or error file), in order. Blocks."""
        with closing(self._connect()) as database:
            query = "SELECT line, failed, record FROM batch_results WHERE batch = ? ORDER BY line"
            for line, failed, record in database.execute(query, (batch,)):
                yield line, bool(failed), record

    def _load(self) -> Kept:
        with closing(self._connect()) as database:
            decode = msgspec.json.decode
            files = [decode(row, type=StoredFile) for (row,) in database.execute("SELECT record FROM files")]
            batches = [decode(row, type=Batch) for (row,) in database.execute("SELECT record FROM batches")]
            done, failed = defaultdict[str, set[int]](set), defaultdict[str, int](int)
            for batch, line, bad in database.execute("SELECT batch, line, failed FROM batch_results"):
                done[batch].add(line)
                failed[batch] += bad
        counted = [_counted(batch, len(done[batch.id]), failed[batch.id]) for batch in batches]
        return Kept(files, counted, done)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(self._database))}?mode=ro", uri=True)


def _counted(batch: Batch, done: int, failed: int) -> Batch:
    """Counts of one that runs are those of its results."""
    if not batch.unfinished:
        return batch
    counts = Counts(batch.request_counts.total, done - failed, failed)
    return msgspec.structs.replace(batch, request_counts=counts)


def put_file(file: StoredFile) -> Statement:
    put = "INSERT OR REPLACE INTO files (id, user, created_at, record) VALUES (?, ?, ?, ?)"
    return put, (file.id, file.user, file.created_at, msgspec.json.encode(file))


def delete_file(id: str) -> Statement:
    return "DELETE FROM files WHERE id = ?", (id,)


def put_batch(batch: Batch) -> Statement:
    put = "INSERT OR REPLACE INTO batches (id, user, status, created_at, record) VALUES (?, ?, ?, ?, ?)"
    return put, (batch.id, batch.user, batch.status, batch.created_at, msgspec.json.encode(batch))


def delete_batch(id: str) -> Statement:
    return "DELETE FROM batches WHERE id = ?", (id,)


def put_result(batch: str, line: int, failed: bool, record: bytes) -> Statement:
    put = "INSERT OR IGNORE INTO batch_results (batch, line, failed, record) VALUES (?, ?, ?, ?)"
    return put, (batch, line, int(failed), record)


def delete_results(batch: str) -> Statement:
    return "DELETE FROM batch_results WHERE batch = ?", (batch,)
