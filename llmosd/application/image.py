"""What is kept of a hibernated request and of its answer, as bytes that are whole or refused.

A header (magic, format version, length, digest) and a MessagePack body.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from llmosd.errors import LlmosError
from llmosd.runtime.geometry import Geometry
from llmosd.system.snapshot import KeptPages, Snapshot
from llmosd.types import FinishReason, RequestId, RequestView
from llmosd.wire import UNREADABLE

FORMAT = 1
_MAGIC = b"LLMOSREQ"
_HEADER = struct.Struct("<8sIQ32s")  # magic, format, bytes of the body, SHA-256 of all that is not this digest
_DIGEST = 32


class ImageError(LlmosError):
    """A file does not hold what its name says, whole and in this format."""

    code = "image_unreadable"


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a request's tokens depend on beside the request; `files` are the SHA-256 digests of the model's files."""

    model: str
    files: dict[str, str]
    geometry: Geometry
    weights: str
    backend: str
    kv_format: str


@dataclass(frozen=True, slots=True)
class Pages:
    """What the file beside an image has of K and V; without that very file they are computed again."""

    kept: KeptPages
    bytes_per_page: int
    digest: bytes  # of the file


@dataclass(frozen=True, slots=True)
class Image:
    """A hibernated request."""

    snapshot: Snapshot
    numerics: Numerics
    at: float  # Unix seconds
    stands: bool = False  # it is to wait for `llmosd resume` after a restart
    pages: Pages | None = None

    @property
    def id(self) -> RequestId:
        return self.snapshot.id


@dataclass(frozen=True, slots=True)
class Answer:
    """What a hibernated request said in the end, kept until somebody has fetched it."""

    view: RequestView
    texts: tuple[str, ...]
    finishes: tuple[FinishReason | None, ...]
    at: float  # Unix seconds

    @property
    def id(self) -> RequestId:
        return self.view.id


T = TypeVar("T", Image, Answer)


def encode(content: Image | Answer) -> bytes:
    body = msgspec.msgpack.encode(content)
    return _header(FORMAT, body) + body


def decode(data: bytes, type_: type[T]) -> T:
    """Raises ImageError, with what is wrong."""
    if len(data) < _HEADER.size:
        raise ImageError("it is cut short")
    magic, version, length, digest = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != _MAGIC:
        raise ImageError("it is no image of a request")
    if version != FORMAT:
        raise ImageError(f"its format is {version}, and this version reads format {FORMAT}")
    if length != len(body):
        raise ImageError(f"{len(body)} bytes are there of {length}")
    if _header(version, body)[-_DIGEST:] != digest:
        raise ImageError("its checksum is wrong: it was damaged")
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except UNREADABLE as error:
        raise ImageError(f"it holds something else: {error}") from error


def _header(version: int, body: bytes) -> bytes:
    bare = _HEADER.pack(_MAGIC, version, len(body), bytes(_DIGEST))[:-_DIGEST]
    return bare + hashlib.sha256(bare + body).digest()
