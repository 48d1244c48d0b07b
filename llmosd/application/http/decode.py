"""JSON objects into typed structs, with the offending field's name in every error."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from llmosd.application.http.errors import BodyTooLarge
from llmosd.application.http.unimplemented import Table
from llmosd.errors import InvalidRequest

MAX_BODY = 8 * 2**20
MAX_DISCARDED = 8 * MAX_BODY
_SHOWN_NAME = 100  # characters of a client's field name that an error repeats
_PATH = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>\w+)`")

T = TypeVar("T", bound=msgspec.Struct)


async def read_body(request: Request) -> bytes:
    """The whole body. Raises BodyTooLarge, having read up to MAX_DISCARDED of it: a connection that is closed on bytes
    not read is reset, and the client would never see the answer.
    """
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY:
            body += chunk
        elif size > MAX_DISCARDED:
            break
    if size > MAX_BODY:
        raise BodyTooLarge(f"the body exceeds {MAX_BODY} bytes")
    return bytes(body)


def decode_object(raw: bytes | msgspec.Raw, type_: type[T], unimplemented: Table, where: str = "") -> T:
    """`raw` as `type_`. Raises InvalidRequest for what is no JSON, no object, mistyped, missing, unknown, or asks for
    something in `unimplemented`; `where` is the object's place in the body.
    """
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        for name in fields.keys() - set(type_.__struct_encode_fields__):
            _refuse(name, fields[name], unimplemented, where)
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise _explained(str(error), where) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", param=where or None) from None


def _refuse(name: str, value: msgspec.Raw, unimplemented: Table, where: str) -> None:
    param = _join(where, name)[:_SHOWN_NAME]
    if name not in unimplemented:
        raise InvalidRequest(f"unknown field {param!r}", param=param)
    if _canonical(msgspec.json.decode(value)) not in map(_canonical, unimplemented[name]):
        defaults = " or ".join(_canonical(default).decode() for default in unimplemented[name])
        raise InvalidRequest(f"{param} is not implemented: leave it out, or give {defaults}", param=param)


def _canonical(value: Any) -> bytes:
    """Equal exactly for equal JSON values; in Python 1 == True."""
    return msgspec.json.encode(value, order="deterministic")


def _explained(message: str, where: str) -> InvalidRequest:
    match = _PATH.match(message)
    what, path = (match["what"], _join(where, match["path"])) if match else (message, where)
    if missing := _MISSING.search(what):
        path = _join(path, missing["field"])
        return InvalidRequest(f"{path} is required", param=path)
    return InvalidRequest(f"{path or 'the body'}: {what}", param=path or None)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name and not name.startswith("[") else where + name
