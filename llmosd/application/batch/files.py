"""Uploaded files and results: contents in a directory that only its owner can read, records in the database."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Literal

from llmosd.application.batch.job import StoredFile
from llmosd.application.batch.ledger import Ledger, delete_file, put_file
from llmosd.durable import SCRATCH, synchronise
from llmosd.errors import InvalidRequest, LlmosError, NotFound

DAY_S = 86_400
MAX_FILE = 200 * 2**20
MAX_NAME = 255


class Files:
    """Owned by the event loop. Whoever asks as `owner` sees that user's files only, as None all."""

    def __init__(self, directory: Path, ledger: Ledger, retention_s: int) -> None:
        self._directory = directory
        self._ledger = ledger
        self._retention_s = retention_s
        self._files: dict[str, StoredFile] = {}

    async def open(self, kept: Iterable[StoredFile]) -> None:
        """Take up what an earlier daemon kept; contents without a record go. Raises LlmosError."""
        self._files = {file.id: file for file in kept}
        try:
            await asyncio.to_thread(self._tidy)
        except OSError as error:
            raise LlmosError(f"{self._directory} cannot be used: {error.strerror}") from error

    def scratch(self) -> Path:
        """A place for contents that are not a file yet; to be removed if they do not become one."""
        return self._directory / f"{uuid.uuid4().hex}{SCRATCH}"

    def path(self, id: str) -> Path:
        return self._directory / id

    def get(self, id: str, owner: str | None = None) -> StoredFile:
        """Raises NotFound."""
        file = self._files.get(id)
        if file is None or owner not in (None, file.user) or file.expires_at <= time.time():
            raise NotFound(f"no file {id[:100]!r}", param="id")
        return file

    def listed(self, owner: str | None) -> list[StoredFile]:
        """Youngest first."""
        now = time.time()
        found = [file for file in self._files.values() if owner in (None, file.user) and file.expires_at > now]
        return found[::-1]

    async def add(
        self, part: tuple[Path, int, int], *, filename: str, user: str, expires_after: int | None = None
    ) -> StoredFile:
        """Keep bytes start … end−1 of a file as one to run a batch of. Raises OSError, StoreError."""
        scratch = self.scratch()
        try:
            await asyncio.to_thread(_cut, *part, scratch)
            file = await self.place(scratch, filename=filename, purpose="batch", user=user, expires_after=expires_after)
        finally:
            await asyncio.to_thread(scratch.unlink, True)
        await self._ledger.write(put_file(file))
        self.keep(file)
        return file

    async def place(
        self,
        scratch: Path,
        *,
        filename: str,
        purpose: Literal["batch", "batch_output"],
        user: str,
        expires_after: int | None,
    ) -> StoredFile:
        """Give contents their place, durably. It is a file once its record is written, and `keep` was told."""
        id, now = f"file-{uuid.uuid4().hex}", int(time.time())
        size = await asyncio.to_thread(_settle, scratch, self.path(id))
        return StoredFile(
            id=id,
            bytes=size,
            created_at=now,
            expires_at=now + min(expires_after or self._retention_s, self._retention_s),
            filename=_shown(filename),
            purpose=purpose,
            user=user,
        )

    def keep(self, file: StoredFile) -> None:
        self._files[file.id] = file

    async def delete(self, id: str) -> None:
        """Record and contents."""
        await self._ledger.write(delete_file(id))
        self._files.pop(id, None)
        await asyncio.to_thread(self.path(id).unlink, True)

    async def expire(self, now: float, in_use: Callable[[str], bool]) -> None:
        """Delete what has been kept for long enough and is not in use."""
        for file in [file for file in self._files.values() if file.expires_at <= now]:
            if not in_use(file.id):
                await self.delete(file.id)

    def _tidy(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._directory.iterdir():
            if path.name not in self._files:
                path.unlink()


def new_file(path: Path) -> BinaryIO:
    """To be written; only its owner may read it."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def check_lifetime(seconds: int, param: str) -> int:
    """Raises InvalidRequest."""
    if not 3600 <= seconds <= 30 * DAY_S:
        raise InvalidRequest(f"{param} is {seconds}; it must be between 3600 and {30 * DAY_S}", param=param)
    return seconds


def _cut(source: Path, start: int, end: int, target: Path) -> None:
    with source.open("rb") as full, new_file(target) as part:
        full.seek(start)
        while (left := end - full.tell()) > 0:
            if not (piece := full.read(min(left, 1 << 20))):
                raise OSError(f"{source.name} has become shorter")
            part.write(piece)


def _settle(scratch: Path, target: Path) -> int:
    synchronise(scratch)
    scratch.rename(target)
    synchronise(target.parent)
    return target.stat().st_size


def _shown(name: str) -> str:
    """Without anything that drives a terminal."""
    return "".join(character for character in name if character.isprintable())[:MAX_NAME] or "upload"
