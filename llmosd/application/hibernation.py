"""Requests that outlive the daemon: images on disk, taken up again by the next one, and the answers they come to.

A request has an image from when `hibernate` returned until it ends. If it finished, its answer takes the image's
place until somebody has fetched it or it is a day old.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmosd.application.engine import Batch, PageContents
from llmosd.application.eventlog import EventLog
from llmosd.application.image import Answer, Image, ImageError, Numerics, Pages
from llmosd.application.image_directory import Contents, ImageDirectory
from llmosd.application.models import Models, ServedModel
from llmosd.application.service import Service
from llmosd.errors import LlmosError, NotFound
from llmosd.runtime.continuation import text_of
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.snapshot import Snapshot
from llmosd.types import Ended, Nanoseconds, RequestId, RequestView, State

log = logging.getLogger(__name__)

SWEEP_S = 3600.0

OnRestore = Callable[[RequestView], Awaitable[None]]


class Hibernation:
    """Owned by the event loop; files are written on threads, one after the other, in the order of what happened."""

    def __init__(
        self,
        directory: Path,
        service: Service,
        models: Models,
        events: EventLog,
        on_restore: OnRestore,
    ) -> None:
        """`on_restore` gets the view of each request that is taken up, before it goes on."""
        self._directory = ImageDirectory(directory)
        self._service = service
        self._roster = service.roster
        self._models = models
        self._note = events.note
        self._on_restore = on_restore
        self._images: set[RequestId] = set()  # written, or about to be
        self._answers: set[RequestId] = set()
        self._files = asyncio.Lock()  # first come, first served
        self._work: set[asyncio.Task[None]] = set()
        service.subscribe(self._observe)

    # ------------------------------------------------------------ down

    async def hibernate(self, ids: Sequence[RequestId] | None = None, *, stands: bool = False) -> list[RequestView]:
        """Suspend these requests, all live ones for None; their images are durable when this returns.

        Raises NotFound where one is unknown or has ended, LlmosError where they could not be written: then those that
        ran before go on. With `stands` they will wait for `resume` after a restart.
        """
        stood = self._roster.suspended
        taken = [snapshot for snapshot in await self._service.freeze(ids) if self._roster.is_live(snapshot.id)]
        new = {snapshot.id for snapshot in taken} - self._images
        self._images |= new
        at = time.time()
        try:
            async with self._files:
                pages = [await self._keep_pages(snapshot.id) for snapshot in taken]
                parts = zip(taken, pages, strict=True)
                images = [
                    Image(snapshot, (await self._models.get(snapshot.spec.model)).numerics, at, stands, kept)
                    for snapshot, kept in parts
                ]
                await asyncio.to_thread(self._directory.write, images)
        except OSError as error:
            await self._take_back(taken, new, stood)
            raise LlmosError(f"nothing was hibernated: {self._directory.path}: {error.strerror}") from error
        for snapshot in taken:
            self._note("info", "request.hibernated", f"hibernated: {_progress(snapshot)}", snapshot.id)
        views = {view.id: view for view in await self._service.requests()}
        return [views[snapshot.id] for snapshot in taken if snapshot.id in views]

    async def keep_suspended(self) -> None:
        """For the daemon's end: who stands still by command will stand still in the next one."""
        for id in self._roster.suspended - self._images:
            try:
                await self.hibernate([id], stands=True)
            except NotFound:
                pass  # it has just ended
            except LlmosError as error:
                self._note("error", "request.lost", f"it ends with the daemon: {error.message}", id)

    async def _keep_pages(self, id: RequestId) -> Pages | None:
        """None where nothing is worth it, or it has gone on already, or the disk has no room."""
        try:
            contents = await self._service.read_pages(id)
            if contents is None:
                return None
            digest = await asyncio.to_thread(self._directory.write_pages, id, contents.data)
        except (NotFound, OSError):
            return None
        return Pages(contents.kept, contents.bytes_per_page, digest)

    async def _take_back(self, taken: Sequence[Snapshot], new: set[RequestId], stood: frozenset[RequestId]) -> None:
        await self._remove([path(id) for id in new for path in (self._directory.image, self._directory.pages)])
        self._images -= new
        for snapshot in taken:
            await self._service.thaw(snapshot.id, durable=snapshot.id in self._images, resume=snapshot.id not in stood)

    # ------------------------------------------------------------ up

    async def restore(self) -> None:
        """Take up whatever images there are, and remember answers. What is wrong with one concerns no other."""
        try:
            found = await asyncio.to_thread(self._directory.open)
        except OSError as error:
            self._note("error", "hibernation.failed", f"{error}: no hibernated request is restored")
            return
        self._remember(found)
        for image in found.images:
            await self._restore(image, found)
        for path, reason in found.bad:
            await self._put_aside(path, reason)

    async def _restore(self, image: Image, found: Contents) -> None:
        try:
            await self._take_up(image)
        except ImageError as error:
            found.bad.append((self._directory.image(image.id), error))
        except LlmosError as error:
            self._note("warning", "request.kept", f"its image stays: {error.message}", image.id)
        except Exception:
            log.exception("a hibernated request cannot be restored; its image stays", extra={"request": image.id})

    async def _take_up(self, image: Image) -> None:
        """Raises ImageError where it can never be served, another LlmosError where it cannot be now."""
        snapshot = image.snapshot
        model = await self._models.get(image.numerics.model)
        self._check(image, model)
        texts = await asyncio.to_thread(_texts, snapshot, model.prompts.tokenizer)
        contents = await asyncio.to_thread(self._contents, image, model.numerics)
        arrived = self._service.clock() - _ns_since(image.at) - snapshot.age
        view = await self._service.restore(snapshot, arrived, texts, contents)
        self._images.add(image.id)
        try:
            await self._on_restore(view)
        except LlmosError as error:
            log.error("request %s goes on unrecorded: %s", image.id, error)
        if not image.stands:
            await self._service.resume(image.id)
        self._note("info", "request.restored", f"restored: {_progress(snapshot)}", image.id)

    def _check(self, image: Image, model: ServedModel) -> None:
        asked, served = image.numerics, model.numerics
        if (asked.files, asked.geometry) != (served.files, served.geometry):
            raise ImageError(f"the model {asked.model} has other files than when it began")
        known = range(model.prompts.tokenizer.vocab_size)
        branches = (branch.tokens for branch in image.snapshot.branches)
        if not all(token in known for tokens in (image.snapshot.spec.prompt, *branches) for token in tokens):
            raise ImageError("it has tokens that its model does not know")
        if asked != served:
            began = f"weights={asked.weights}, backend={asked.backend}, kv_format={asked.kv_format}"
            text = f"it began with {began}: its text may be another"
            self._note("warning", "request.numerics", text, image.id)

    def _contents(self, image: Image, served: Numerics) -> PageContents | None:
        """K and V, if they are what this daemon would compute."""
        if image.pages is None or image.numerics != served:
            return None
        data, size = self._directory.read_pages(image), image.pages.bytes_per_page
        whole = data is not None and len(data) == image.pages.kept.pages * size
        return PageContents(image.pages.kept, size, data) if data is not None and whole else None

    def _remember(self, found: Contents) -> None:
        for answer in found.answers:
            self._answers.add(answer.id)
            view, first = answer.view, answer.view.first_token
            arrived = self._service.clock() - _ns_since(answer.at) - view.times.total
            first = None if first is None else first - view.arrived + arrived
            self._roster.remember(replace(view, arrived=arrived, first_token=first), answer.texts, answer.finishes)

    async def _put_aside(self, path: Path, reason: ImageError) -> None:
        try:
            aside = await asyncio.to_thread(self._directory.put_aside, path)
        except OSError as error:
            self._note("error", "request.bad_image", f"{path.name} is unreadable: {reason.message}; and stays: {error}")
        else:
            self._note("error", "request.bad_image", f"{path.name} is now {aside.name}: {reason.message}")

    # ------------------------------------------------------------ ends

    def _observe(self, batch: Batch) -> None:
        for event in batch.events:
            if type(event) is Ended and event.request.id in self._images and not event.interrupted:
                self._start(self._settle(event.request, self._answer(event.request)))

    def _answer(self, view: RequestView) -> Answer | None:
        transcript = self._roster.transcript(view.id)
        if view.state is not State.FINISHED or transcript is None:
            return None
        return Answer(view, tuple(transcript.texts), tuple(transcript.finishes), time.time())

    async def _settle(self, view: RequestView, answer: Answer | None) -> None:
        """Its answer takes the image's place. Where that cannot be written the image stays, and serves as well."""
        async with self._files:
            try:
                if answer is not None:
                    await asyncio.to_thread(self._directory.write, [answer])
                    self._answers.add(view.id)
                files = [self._directory.image(view.id), self._directory.pages(view.id)]
                await asyncio.to_thread(self._directory.remove, files)
            except OSError as error:
                self._note("error", "request.kept", f"its image stays, its answer is in memory: {error}", view.id)
        self._images.discard(view.id)

    def fetched(self, id: RequestId) -> None:
        """Somebody has got the whole answer; only memory keeps it from now on."""
        if id in self._answers:
            self._answers.discard(id)
            self._start(self._remove([self._directory.answer(id)]))

    async def run(self) -> None:
        """Never returns; deletes answers that nobody fetched in time."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._remove(await asyncio.to_thread(self._directory.outdated))

    async def settled(self) -> None:
        """Returns when all that has happened so far is on disk."""
        while self._work:
            await asyncio.wait(self._work)

    # ------------------------------------------------------------ small things

    async def _remove(self, paths: Sequence[Path]) -> None:
        async with self._files:
            try:
                await asyncio.to_thread(self._directory.remove, paths)
            except OSError as error:
                log.warning("files of hibernated requests cannot be removed: %s", error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="hibernation")
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def _texts(snapshot: Snapshot, tokenizer: Tokenizer) -> list[str]:
    return [text_of(branch.tokens, snapshot.spec.sampling, tokenizer) for branch in snapshot.branches]


def _progress(snapshot: Snapshot) -> str:
    tokens = sum(len(branch.tokens) for branch in snapshot.branches)
    return f"{len(snapshot.spec.prompt)} prompt tokens, {tokens} generated so far"


def _ns_since(at: float) -> Nanoseconds:
    return int(max(0.0, time.time() - at) * 1e9)
