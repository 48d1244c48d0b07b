"""Batch jobs: accepted ones survive any end of the daemon, and each of their lines is answered exactly once.

A line is posted as if by a client that never leaves, in class `batch`; its result is one transaction. Lines of all
batches share a bounded number of places, each batch waiting for one at a time: so they take turns, and the queue is
never full of them. A line that the queue has no room for gives its place back. What a daemon's end interrupts has no
result and runs again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from llmosd.application.batch import ledger, lines, output
from llmosd.application.batch.files import Files
from llmosd.application.batch.job import Batch, Counts, Errors, LineError, Status, StoredFile
from llmosd.application.batch.ledger import Ledger
from llmosd.application.batch.lines import Span
from llmosd.application.batch.output import Failure, Response
from llmosd.application.eventlog import EventLog
from llmosd.application.migrate import StoreError
from llmosd.application.service import Phase, Service
from llmosd.errors import InvalidRequest, NotFound, QueueFull, Unavailable
from llmosd.types import RequestId

log = logging.getLogger(__name__)

MAX_UNFINISHED = 100
RETRY_S = 1.0
REFUSED_S = 0.2
BUSY_S = 60.0
SWEEP_S = 3600.0
_CANCELLED = Failure("batch_cancelled", "the batch was cancelled before this line could be run")
_EXPIRED = Failure("batch_expired", "the batch's completion window ended before this line could be run")

Post = Callable[[Batch, RequestId, bytes], Awaitable[tuple[int, bytes]]]
"""Posts a body to the batch's endpoint; status and body of the answer. Raises QueueFull and Unavailable."""


@dataclass(slots=True)
class _Job:
    """A batch that is being worked on."""

    spans: list[Span] = field(default_factory=list)
    left: deque[Span] = field(default_factory=deque)  # to be run
    running: int = 0
    refused: bool = False  # the queue had no room for one lately
    news: asyncio.Event = field(default_factory=asyncio.Event)  # a line has ended
    scope: asyncio.Timeout | None = None  # around its lines


class Batches:
    """Owned by the event loop. Whoever asks as `owner` sees that user's batches only, as None all."""

    def __init__(
        self, files: Files, ledger: Ledger, service: Service, post: Post, events: EventLog, *, places: int, kept_s: int
    ) -> None:
        """`places`: lines that run or wait at once. Batches that have ended are forgotten after `kept_s`."""
        self.files = files
        self._ledger = ledger
        self._service = service
        self._post = post
        self._note = events.note
        self._places = asyncio.Semaphore(places)
        self._kept_s = kept_s
        self._batches: dict[str, Batch] = {}
        self._done: dict[str, set[int]] = {}  # lines with a result, of unfinished ones
        self._jobs: dict[str, _Job] = {}
        self._work: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ asked by clients

    async def create(self, batch: Batch) -> Batch:
        """Recorded when this returns. Raises Unavailable, QueueFull."""
        if self._service.phase is not Phase.SERVING:
            raise Unavailable(f"the daemon is {self._service.phase}: no new batches are taken")
        if sum(other.unfinished for other in self._batches.values() if other.user == batch.user) >= MAX_UNFINISHED:
            text = f"{MAX_UNFINISHED} batches of this user are unfinished: wait for one to end, or cancel one"
            raise QueueFull(text, retry_after_s=BUSY_S)
        await self._ledger.write(ledger.put_batch(batch))
        self._batches[batch.id] = batch
        self._start(batch.id)
        return batch

    def get(self, id: str, owner: str | None = None) -> Batch:
        """Raises NotFound."""
        batch = self._batches.get(id)
        if batch is None or owner not in (None, batch.user):
            raise NotFound(f"no batch {id[:100]!r}", param="id")
        return batch

    def listed(self, owner: str | None) -> list[Batch]:
        """Youngest first."""
        return [batch for batch in self._batches.values() if owner in (None, batch.user)][::-1]

    async def cancel(self, id: str) -> Batch:
        """What runs of it is cancelled, what is done stays. Raises NotFound, InvalidRequest where it has ended."""
        batch = self.get(id)
        if batch.status == "cancelling":
            return batch
        if batch.status not in ("validating", "in_progress"):
            raise InvalidRequest(f"batch {id} cannot be cancelled: it is {batch.status}")
        await self._move(id, "cancelling")
        if (job := self._jobs.get(id)) and job.scope:
            job.scope.reschedule(asyncio.get_running_loop().time())
        self._start(id)  # it may have stood still
        return self._batches[id]

    async def delete_file(self, id: str, owner: str | None) -> None:
        """Raises NotFound, InvalidRequest where an unfinished batch needs it."""
        self.files.get(id, owner)
        if self._needs(id):
            raise InvalidRequest(f"file {id} is the input of a batch that has not ended: cancel that first", param="id")
        await self.files.delete(id)

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Know what an earlier daemon kept. Raises LlmosError."""
        kept = await self._ledger.load()
        await self.files.open(kept.files)
        self._batches = {batch.id: batch for batch in kept.batches}
        self._done = kept.done

    async def run(self) -> None:
        """Go on with what is unfinished; never returns. Old batches and files are deleted."""
        for batch in self._batches.values():
            if batch.unfinished:
                self._note("info", "batch.resumed", f"goes on: {_progress(batch)}", batch.id)
                self._start(batch.id)
        while True:
            await self._sweep(time.time())
            await asyncio.sleep(SWEEP_S)

    async def settled(self) -> None:
        """Returns when no line runs any more; to be called when the engine has ended."""
        while self._work:
            await asyncio.wait(self._work)

    def _start(self, id: str) -> None:
        if id not in self._jobs:
            self._jobs[id] = _Job()
            task = asyncio.create_task(self._work_on(id, self._jobs[id]), name=id)
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _sweep(self, now: float) -> None:
        try:
            for batch in list(self._batches.values()):
                if batch.ended_at is not None and batch.ended_at + self._kept_s <= now:
                    await self._ledger.write(ledger.delete_batch(batch.id))
                    del self._batches[batch.id]
            await self.files.expire(now, self._needs)
        except (OSError, StoreError) as error:
            log.error("old batches and files cannot be deleted: %s", error)

    def _needs(self, file: str) -> bool:
        return any(batch.input_file_id == file and batch.unfinished for batch in self._batches.values())

    # ------------------------------------------------------------ one batch

    async def _work_on(self, id: str, job: _Job) -> None:
        try:
            if await self._validate(id, job) and await self._run_lines(id, job):
                await self._finalize(id, job)
        except Exception:  # a disk that is full, a defect: what is done stays, and the next daemon goes on
            log.exception("batch %s stands still", id)
            text = "stands still until the next start of the daemon, whose log says why"
            self._note("error", "batch.stuck", text, id)
        finally:
            del self._jobs[id]

    async def _validate(self, id: str, job: _Job) -> bool:
        batch = self._batches[id]
        found = await asyncio.to_thread(lines.check, self.files.path(batch.input_file_id), batch.endpoint)
        if found.errors:
            await self._fail(id, found.errors)
            return False
        job.spans = found.lines
        if self._batches[id].status == "validating":
            await self._move(id, "in_progress", model=found.model, request_counts=Counts(len(found.lines)))
            self._note("info", "batch.started", f"started: {len(found.lines)} requests to {batch.endpoint}", id)
        return True

    async def _run_lines(self, id: str, job: _Job) -> bool:
        """False where the daemon ends before all have a result. One that was cancelled or has expired runs no more."""
        done, left = self._done.setdefault(id, set()), self._batches[id].expires_at - time.time()
        if self._batches[id].status != "in_progress":
            return True
        at = asyncio.get_running_loop().time() + max(0.0, left)
        job.left = deque(span for span in job.spans if span.number not in done)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(at) as job.scope, asyncio.TaskGroup() as group:
                while (job.left or job.running) and self._service.phase is Phase.SERVING:
                    await (self._wait(job) if job.refused or not job.left else self._start_line(id, job, group))
        job.scope = None
        return len(done) == len(job.spans) or self._service.phase is Phase.SERVING

    async def _wait(self, job: _Job) -> None:
        """For a moment where the queue had no room, else until a line has ended."""
        if job.refused:
            await asyncio.sleep(REFUSED_S)
            job.refused = False
        else:
            job.news.clear()
            await job.news.wait()

    async def _start_line(self, id: str, job: _Job, group: asyncio.TaskGroup) -> None:
        await self._places.acquire()
        span = job.left.popleft()
        job.running += 1

        def ended(_line: asyncio.Task[None]) -> None:
            self._places.release()
            job.running -= 1
            job.news.set()

        group.create_task(self._run_line(id, job, span), name=f"{id}-{span.number}").add_done_callback(ended)

    async def _run_line(self, id: str, job: _Job, span: Span) -> None:
        """Returns without a result where the queue has no room for it, or the daemon ends: it takes its turn again."""
        batch = self._batches[id]
        line = await asyncio.to_thread(lines.read, self.files.path(batch.input_file_id), span)
        request = await self._free_id(f"{id}-{span.number}")
        try:
            status, body = await self._post(batch, request, bytes(line.body))
        except (QueueFull, Unavailable):
            job.refused = True
            job.left.appendleft(span)
        else:
            response = Response(status, request, msgspec.Raw(body))
            await self._record(id, span, status >= 400, output.record(line.custom_id, response=response))

    async def _free_id(self, wanted: RequestId) -> RequestId:
        """An id for a request. One for the same line that an earlier daemon left on disk is cancelled."""
        id, attempt, roster = wanted, 0, self._service.roster
        while roster.knows(id):
            if roster.is_live(id):
                with suppress(NotFound):
                    await self._service.cancel(id, "its batch runs the line again")
            attempt += 1
            id = f"{wanted}.{attempt}"
        return id

    async def _record(self, id: str, span: Span, failed: bool, record: bytes) -> None:
        while True:
            try:
                await self._ledger.write(ledger.put_result(id, span.number, failed, record))
                break
            except StoreError:
                if self._service.phase is Phase.STOPPING:
                    return
                await asyncio.sleep(RETRY_S)
        self._done[id].add(span.number)
        batch = self._batches[id]
        counts = batch.request_counts
        counts = Counts(counts.total, counts.completed + (not failed), counts.failed + failed)
        self._batches[id] = replace(batch, request_counts=counts)

    # ------------------------------------------------------------ its end

    async def _finalize(self, id: str, job: _Job) -> None:
        """Files and final status are there together, in one transaction; until then this is repeated after a crash."""
        cancelled = self._batches[id].status == "cancelling"
        await self._move(id, "cancelling" if cancelled else "finalizing")  # whatever was written before is read below
        batch, good, bad = self._batches[id], self.files.scratch(), self.files.scratch()
        why_not = _CANCELLED if cancelled else _EXPIRED
        try:
            source, results = self.files.path(batch.input_file_id), self._ledger.results(id)
            tally = await asyncio.to_thread(output.assemble, source, job.spans, results, why_not, good, bad)
            succeeded = await self._place(batch, good, "output") if tally.counts.completed else None
            failed = await self._place(batch, bad, "error") if tally.counts.failed else None
        finally:
            for scratch in (good, bad):
                await asyncio.to_thread(scratch.unlink, True)
        status: Status = "cancelled" if cancelled else "expired" if tally.missing else "completed"
        files = [file for file in (succeeded, failed) if file]
        batch = batch.moved(
            status,
            time.time(),
            request_counts=tally.counts,
            usage=tally.usage,
            output_file_id=succeeded.id if succeeded else None,
            error_file_id=failed.id if failed else None,
        )
        await self._ledger.write(*map(ledger.put_file, files), ledger.put_batch(batch), ledger.delete_results(id))
        for file in files:
            self.files.keep(file)
        self._end(batch)

    async def _place(self, batch: Batch, scratch: Path, kind: str) -> StoredFile:
        return await self.files.place(
            scratch,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            user=batch.user,
            expires_after=batch.output_expires_after,
        )

    async def _fail(self, id: str, errors: list[LineError]) -> None:
        batch = self._batches[id].moved("failed", time.time(), errors=Errors(tuple(errors)))
        await self._ledger.write(ledger.put_batch(batch), ledger.delete_results(id))
        self._end(batch)

    def _end(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._done.pop(batch.id, None)
        severity = "warning" if batch.status == "failed" else "info"
        self._note(severity, f"batch.{batch.status}", f"{batch.status}: {_progress(batch)}", batch.id)

    async def _move(self, id: str, status: Status, **changes: Any) -> None:
        """In memory first: what is written is always the latest."""
        batch = self._batches[id] = self._batches[id].moved(status, time.time(), **changes)
        await self._ledger.write(ledger.put_batch(batch))


def _progress(batch: Batch) -> str:
    if batch.errors:
        return batch.errors.data[0].message
    counts = batch.request_counts
    return f"{counts.completed} requests answered, {counts.failed} failed, of {counts.total}"
