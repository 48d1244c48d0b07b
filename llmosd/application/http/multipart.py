"""multipart/form-data (RFC 7578) of a body that is on disk: fields are read, a file is found, nothing is copied."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from llmosd.errors import InvalidRequest

MAX_FIELD = 4096
MAX_HEADERS = 8192
MAX_PARTS = 20


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes start … end−1 of the body."""

    filename: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Form:
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, FilePart] = field(default_factory=dict)


def boundary_of(content_type: str) -> bytes:
    """Raises InvalidRequest where it is no multipart/form-data."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise InvalidRequest("a file is uploaded as multipart/form-data, with the fields file and purpose")
    return boundary.encode("latin-1", "replace")


def parse(body: Path, boundary: bytes) -> Form:
    """Blocks. Raises InvalidRequest, OSError."""
    with body.open("rb") as file:
        if not body.stat().st_size:
            raise InvalidRequest("the body is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, b"--" + boundary)


def _parse(data: mmap.mmap, delimiter: bytes) -> Form:
    form = Form()
    at = 0 if data[: len(delimiter)] == delimiter else _find(data, b"\r\n" + delimiter, 0) + 2
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        if data[at : at + 2] == b"--":
            return form
        head = _find(data, b"\r\n", at)  # what stands before it is padding
        start = _find(data, b"\r\n\r\n", head) + 4
        if start - head > MAX_HEADERS:
            raise InvalidRequest("the multipart body has a part with too long a header")
        end = _find(data, b"\r\n" + delimiter, start)
        _take(form, data, data[head + 2 : start], start, end)
        at = end + 2
    raise InvalidRequest(f"the multipart body has more than {MAX_PARTS} parts")


def _take(form: Form, data: mmap.mmap, headers: bytes, start: int, end: int) -> None:
    header = HeaderParser().parsestr(headers.decode("utf-8", "replace"))
    name = header.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise InvalidRequest("the multipart body has a part without a name")
    if (filename := header.get_filename()) is not None:
        form.files[name] = FilePart(filename, start, end)
    elif end - start > MAX_FIELD:
        raise InvalidRequest(f"the field {name[:100]!r} is too long", param=name[:100])
    else:
        form.fields[name] = data[start:end].decode("utf-8", "replace")


def _find(data: mmap.mmap, wanted: bytes, start: int) -> int:
    if (at := data.find(wanted, start)) < 0:
        raise InvalidRequest("the multipart body is cut off or malformed")
    return at
