"""The files of hibernated requests: `<id>.image`, with `<id>.pages` where K and V are worth keeping, later
`<id>.answer`; `.bad` behind the name of what is unreadable.

A file is written beside its place, synchronised, renamed, and the directory synchronised: it is there whole or not at
all, and survives the loss of power. Everything here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from llmosd.application.image import Answer, Image, ImageError, T, decode, encode
from llmosd.durable import SCRATCH, put, synchronise
from llmosd.types import RequestId

ANSWER_S = 24 * 3600.0  # how long an answer waits for somebody to fetch it


@dataclass(frozen=True, slots=True)
class Contents:
    """Oldest requests first; `bad` says what is wrong with which file."""

    images: list[Image] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    bad: list[tuple[Path, ImageError]] = field(default_factory=list)


class ImageDirectory:
    """For one caller at a time. All methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image(self, id: RequestId) -> Path:
        return self._named(id, ".image")

    def pages(self, id: RequestId) -> Path:
        return self._named(id, ".pages")

    def answer(self, id: RequestId) -> Path:
        return self._named(id, ".answer")

    def open(self) -> Contents:
        """Make the directory where it is not, clear it up, and read what is there."""
        if not self.path.is_dir():
            self.path.mkdir(parents=True, mode=0o700)
            synchronise(self.path.parent)
        self.remove([*self.path.glob(f"*{SCRATCH}"), *self.outdated()])
        found = Contents()
        self._read_all(".answer", Answer, found.answers, found)
        self.remove([self.image(answer.view.id) for answer in found.answers])  # the last daemon had not got to it
        self._read_all(".image", Image, found.images, found)
        found.images.sort(key=lambda image: image.snapshot.spec.created_at)
        wanted = {self.pages(image.id) for image in found.images if image.pages}
        self.remove(path for path in self.path.glob("*.pages") if path not in wanted)
        return found

    def write(self, contents: Iterable[Image | Answer]) -> None:
        """Durable when it returns; what a failure leaves is as it was or as it is to be."""
        for content in contents:
            path = self.image(content.id) if isinstance(content, Image) else self.answer(content.id)
            put(path, encode(content))
        synchronise(self.path)

    def write_pages(self, id: RequestId, data: memoryview) -> bytes:
        """The file's digest; durable with the image that is written next."""
        put(self.pages(id), data)
        return sha256(data).digest()

    def read_pages(self, image: Image) -> memoryview | None:
        """None unless they are what was written with this image."""
        if image.pages is None:
            return None
        try:
            data = self.pages(image.id).read_bytes()
        except OSError:
            return None
        return memoryview(data) if sha256(data).digest() == image.pages.digest else None

    def remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        synchronise(self.path)

    def outdated(self) -> list[Path]:
        limit = time.time() - ANSWER_S
        return [path for path in self.path.glob("*.answer") if path.stat().st_mtime < limit]

    def put_aside(self, path: Path) -> Path:
        aside = path.with_name(f"{path.name}.bad")
        path.rename(aside)
        return aside

    def _named(self, id: RequestId, ending: str) -> Path:
        return self.path / (quote(id, safe="") + ending)

    def _read_all(self, ending: str, type_: type[T], into: list[T], found: Contents) -> None:
        for path in sorted(self.path.glob(f"*{ending}")):
            try:
                content = decode(path.read_bytes(), type_)
                if path != self._named(content.id, ending):
                    raise ImageError(f"it is of request {content.id}")
                into.append(content)
            except ImageError as error:
                found.bad.append((path, error))
            except OSError as error:
                found.bad.append((path, ImageError(f"it cannot be read: {error.strerror}")))
