"""The event loop's side of the engine: all that HTTP, bus and store talk to.

Commands go to the engine's thread and come back as replies; events come in batches, one a step, and are handed to the
streams and to whoever subscribed. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

from llmosd.application.engine import (
    AddModel,
    Batch,
    Command,
    Control,
    Engine,
    Hibernate,
    Inspect,
    LoadModel,
    PageContents,
    ReadPages,
    Restore,
    SetPolicy,
    Submit,
    UnloadModel,
)
from llmosd.application.flow import DEFAULT, BackPressure, Flow
from llmosd.application.roster import HISTORY, Roster
from llmosd.application.stream import RequestStream
from llmosd.application.transcript import Transcript
from llmosd.errors import InvalidRequest, LlmosError, NotFound, Unavailable
from llmosd.system.control import Action, Kill, Resume, Selection
from llmosd.system.residency import ModelEntry
from llmosd.system.snapshot import Snapshot
from llmosd.types import (
    ENDED,
    KernelStats,
    ModelStats,
    Nanoseconds,
    RequestId,
    RequestSpec,
    RequestView,
)

log = logging.getLogger(__name__)


class Phase(StrEnum):
    """Where the daemon is in its life; requests are taken only while it serves."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


OnAccept = Callable[[RequestView], Awaitable[None]]


async def _nothing_to_record(_view: RequestView) -> None:
    return None


class Service:
    """Submits, cancels, lists; one dispatcher for everything the engine says.

    `dispatch` is what the engine's `deliver` must reach on the event loop. `on_accept` makes a request durable: a
    request is answered only after it returned.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_accept: OnAccept = _nothing_to_record,
        clock: Callable[[], int] = time.monotonic_ns,
        back_pressure: BackPressure = DEFAULT,
    ) -> None:
        self.phase = Phase.STARTING
        self.stats: KernelStats | None = None
        self.inspected: KernelStats | None = None  # with requests, users and pools
        self._engine = engine
        self._tickets = itertools.count(1)
        self._on_accept = on_accept
        self._flow = Flow(engine, self._tickets)
        self._back_pressure = back_pressure
        self.clock = clock
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._opening: dict[int, RequestId] = {}  # tickets of submits that are not answered yet
        self.roster = Roster()
        self._subscribers: list[Callable[[Batch], None]] = []

    # ------------------------------------------------------------ commands

    async def submit(self, spec: RequestSpec) -> RequestStream:
        """Accepted and recorded when this returns. Raises what `Kernel.submit` does, and Unavailable."""
        if self.phase is not Phase.SERVING:
            raise Unavailable(f"the daemon is {self.phase}: no new requests are taken")
        if self.roster.knows(spec.id):
            raise InvalidRequest(f"the request id {spec.id!r} is taken")
        command = Submit(next(self._tickets), spec)
        stream = self._open(command.ticket, spec.id, Transcript.blank(max(1, spec.sampling.n)))
        try:
            accepted: RequestView = await self._ask(command)
            await self._on_accept(accepted)
        except BaseException:
            stream.close("it could not be recorded, or its caller went away before it was accepted")
            raise
        return stream

    async def control(self, action: Action, selection: Selection, owner: str | None = None) -> list[RequestView]:
        """Done before the next step, or not at all; the views of those it was done to, as they are afterwards.

        Raises NotFound where an id is unknown or has ended, and what `system.control.control` raises.
        """
        for id in selection.ids:
            self.roster.check_live(id)
        views: tuple[RequestView, ...] = await self._ask(Control(next(self._tickets), action, selection, owner))
        return list(views)

    async def cancel(self, id: RequestId, reason: str) -> RequestView:
        """The view it ended with. Raises NotFound where it is unknown or has ended."""
        [view] = await self.control(Kill(reason), Selection((id,)))
        return view

    async def resume(self, id: RequestId) -> RequestView:
        """Raises NotFound where it is unknown or has ended."""
        [view] = await self.control(Resume(), Selection((id,)))
        return view

    async def wait(self, selection: Selection, timeout_s: float) -> list[RequestView]:
        """Until all that the selection means now have ended, or for so long; their views, as they are then.

        Raises NotFound where an id is unknown; one that has ended already is waited for no more.
        """
        ids = [view.id for view in await self.select(selection)]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(map(self.roster.is_live, ids)):
                    await self.roster.departure()
        return await self.select(Selection(tuple(ids))) if ids else []

    async def select(self, selection: Selection) -> list[RequestView]:
        """Live requests, and ended ones that are named. Raises NotFound where an id is unknown."""
        views = await self.requests()
        if not selection.ids:
            return [view for view in views if view.state not in ENDED and selection.matches(view)]
        found = {view.id: view for view in views}
        if unknown := [id for id in selection.ids if id not in found]:
            raise _unknown(unknown[0])
        return [found[id] for id in dict.fromkeys(selection.ids)]

    async def freeze(self, ids: Sequence[RequestId] | None) -> tuple[Snapshot, ...]:
        """Suspend them, all live ones for None, and take them down; from now on they outlive their clients.

        Raises NotFound where one is unknown or has ended; then none was suspended.
        """
        for id in ids or ():
            self.roster.check_live(id)
        command = Hibernate(next(self._tickets), None if ids is None else tuple(ids))
        snapshots: tuple[Snapshot, ...] = await self._ask(command)
        for snapshot in snapshots:
            if stream := self.roster.stream(snapshot.id):
                stream.durable = True
        return snapshots

    async def thaw(self, id: RequestId, *, durable: bool, resume: bool) -> None:
        """Its image could not be written: `durable` if there is an older one; `resume` if it ran before."""
        if stream := self.roster.stream(id):
            stream.durable = durable
            if resume:
                with suppress(NotFound):
                    await self.resume(id)

    async def read_pages(self, id: RequestId) -> PageContents | None:
        """What is worth keeping of a suspended request's K and V. Raises NotFound."""
        contents: PageContents | None = await self._ask(ReadPages(next(self._tickets), id))
        return contents

    async def restore(
        self, snapshot: Snapshot, arrived: Nanoseconds, texts: Sequence[str], contents: PageContents | None
    ) -> RequestView:
        """Take up, suspended, a request of an earlier daemon that has said these texts; `contents` saves prefill.

        Raises InvalidRequest or ContextTooLong where the limits there are now cannot serve it.
        """
        command = Restore(next(self._tickets), snapshot, arrived, contents)
        finishes = [branch.finish for branch in snapshot.branches]
        stream = self._open(command.ticket, snapshot.id, Transcript(texts, finishes))
        stream.durable = stream.open_to_all = True
        stream.finish(None)  # its client is gone
        view: RequestView = await self._ask(command)
        return view

    async def add_model(self, entry: ModelEntry) -> None:
        """Make a model known to the engine. Raises DoesNotFit."""
        await self._ask(AddModel(next(self._tickets), entry))

    async def set_policy(self, name: str) -> None:
        """Let another policy order requests, from the next step on. Raises InvalidRequest, naming those there are."""
        await self._ask(SetPolicy(next(self._tickets), name))

    async def load_model(self, model: str) -> ModelStats:
        """Once it is in memory, or is not to be any more. Raises ModelError where it could not be loaded."""
        stats: ModelStats = await self._ask(LoadModel(next(self._tickets), model))
        return stats

    async def unload_model(self, model: str) -> ModelStats:
        """Once it is out of memory, or is to stay after all. Raises InvalidRequest for one that is pinned."""
        stats: ModelStats = await self._ask(UnloadModel(next(self._tickets), model))
        return stats

    async def inspect(self) -> KernelStats:
        """Everything about the kernel, as it is now."""
        stats: KernelStats = await self._ask(Inspect(next(self._tickets)))
        self.inspected = stats
        return stats

    async def requests(self) -> list[RequestView]:
        """Live ones first, each group youngest first; the last `HISTORY` ended ones are remembered."""
        return self.roster.listed((await self.inspect()).requests)

    async def get(self, id: RequestId) -> RequestView:
        """Raises NotFound for one that never was or is forgotten."""
        if ended := self.roster.ended(id):
            return ended
        found = next((view for view in await self.requests() if view.id == id), None)
        if found is None:
            raise _unknown(id)
        return found

    def new_id(self) -> RequestId:
        return uuid.uuid4().hex

    # ------------------------------------------------------------ life

    def subscribe(self, callback: Callable[[Batch], None]) -> None:
        """`callback` gets every batch, on the event loop, after the streams had it."""
        self._subscribers.append(callback)

    def stop(self) -> None:
        """End the engine now. What is live fails, and its clients hear that they may ask again later."""
        self.phase = Phase.STOPPING
        self._engine.stop(drain=False)

    @property
    def failure(self) -> str | None:
        """Why the engine died, once it has."""
        return self._engine.failure

    # ------------------------------------------------------------ what the engine says

    def dispatch(self, batch: Batch) -> None:
        self.stats = batch.stats
        for event in batch.events:
            self.roster.follow(event, stopping=self.phase is Phase.STOPPING)
        for reply in batch.replies:
            self._on_reply(reply.ticket, reply.value)
        for callback in self._subscribers:
            try:
                callback(batch)
            except Exception:
                log.exception("a subscriber of the engine's batches failed")

    def _on_reply(self, ticket: int, value: object) -> None:
        reply = self._replies.pop(ticket, None)
        opening = self._opening.pop(ticket, None)
        if isinstance(value, LlmosError) and opening and (stream := self.roster.forget(opening)):
            stream.finish(value)
        if reply is None or reply.done():
            return
        if isinstance(value, LlmosError):
            reply.set_exception(value)
        else:
            reply.set_result(value)

    # ------------------------------------------------------------ parts

    async def _ask(self, command: Command) -> Any:
        reply = self._replies[command.ticket] = asyncio.get_running_loop().create_future()
        try:
            self._engine.post(command)
            return await reply
        finally:
            self._replies.pop(command.ticket, None)

    def _open(self, ticket: int, id: RequestId, transcript: Transcript) -> RequestStream:
        self._opening[ticket] = id
        return self.roster.open(RequestStream(id, transcript, self._flow, self._back_pressure))


def _unknown(id: RequestId) -> NotFound:
    return NotFound(f"no request {id!r} (the last {HISTORY} ended ones are remembered)")
