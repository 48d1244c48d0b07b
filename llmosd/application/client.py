"""Talks to a daemon over HTTP: for the command line (`Client`) and for the monitor (`AsyncClient`).

Whatever goes wrong is an LlmosError with the daemon's own words; an address where nothing answers is Unavailable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from llmosd.application.batch.job import Batch, StoredFile
from llmosd.application.listing import PolicyInfo, RequestDetail, RequestInfo
from llmosd.application.memory import MemoryInfo
from llmosd.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    LlmosError,
    NotFound,
    QueueFull,
    QueueTimeout,
    RateLimited,
    StepError,
    Unauthorized,
    Unavailable,
)
from llmosd.wire import UNREADABLE

KEY = "LLMOS_KEY"  # the environment variable: a flag could be read by everybody on the machine
DEFAULT_URL = "http://127.0.0.1:11500"
_QUICK = httpx.Timeout(10.0, connect=3.0)
_DURABLE = httpx.Timeout(120.0, connect=3.0)  # a disk may be slow
_WAITING = httpx.Timeout(90.0, connect=3.0)  # longer than the daemon lets `wait` take
_GENERATING = httpx.Timeout(None, connect=3.0)  # a queue may be long, and keep-alives show that it moves

_LEAVES: dict[str, type[LlmosError]] = {
    leaf.code: leaf
    for leaf in (
        Cancelled,
        ContextTooLong,
        DeadlineExceeded,
        Forbidden,
        InvalidRequest,
        NotFound,
        StepError,
        Unauthorized,
        Unavailable,
    )
}
_BUSY: dict[str, type[QueueFull]] = {leaf.code: leaf for leaf in (QueueFull, QueueTimeout, RateLimited)}
_STATUS: dict[int, type[LlmosError]] = {400: InvalidRequest, 404: NotFound, 503: Unavailable}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a streamed answer: new text, its end, or both. `usage` counts up to this piece."""

    text: str = ""
    finish: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of one choice."""

    text: str
    finish: str
    usage: Usage


class Client:
    """Blocking; close it, or use it in a `with`. Its key is what `LLMOS_KEY` holds."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self.url = url
        self._http = httpx.Client(**_options(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def status(self) -> dict[str, Any]:
        return self._call("GET", "/v1/status", dict[str, Any])

    def memory(self) -> MemoryInfo:
        return self._call("GET", "/v1/memory", MemoryInfo)

    def requests(self, **filters: str) -> list[RequestInfo]:
        """Live ones first, then the last ended ones; filters are `user` and `state`."""
        return self._call("GET", "/v1/requests", _Requests, params=filters).data

    def request(self, id: str) -> RequestInfo:
        return self._call("GET", _path(id), RequestInfo)

    def detail(self, id: str) -> RequestDetail:
        return self._call("GET", _path(id), RequestDetail)

    def control(self, command: str, **fields: Any) -> list[RequestInfo]:
        """`ps`, `kill`, `nice`, `suspend`, `resume` or `wait`, with the fields of `wire.CommandBody`."""
        return self._call("POST", "/v1/control", _Requests, json={"command": command, **fields}, timeout=_WAITING).data

    def cancel(self, id: str) -> RequestInfo:
        return self._call("DELETE", _path(id), RequestInfo)

    def hibernate(self, id: str) -> RequestInfo:
        return self._call("POST", f"{_path(id)}/hibernate", RequestInfo, timeout=_DURABLE)

    def hibernate_all(self) -> list[RequestInfo]:
        return self._call("POST", "/v1/hibernate", _Requests, timeout=_DURABLE).data

    def policy(self) -> PolicyInfo:
        return self._call("GET", "/v1/policy", PolicyInfo)

    def set_policy(self, name: str) -> PolicyInfo:
        return self._call("PUT", "/v1/policy", PolicyInfo, json={"policy": name})

    def upload(self, name: str, contents: BinaryIO) -> StoredFile:
        """A file of requests, for a batch."""
        files, data = {"file": (name, contents)}, {"purpose": "batch"}
        return self._call("POST", "/v1/files", StoredFile, files=files, data=data, timeout=_DURABLE)

    def contents(self, file: str) -> Iterator[bytes]:
        """Of a file, piece by piece."""
        with (
            _reaching(self.url),
            self._http.stream("GET", f"/v1/files/{quote(file, safe='')}/content", timeout=_DURABLE) as response,
        ):
            if response.is_error:
                response.read()
                raise _error(response)
            yield from response.iter_bytes()

    def create_batch(self, file: str, endpoint: str, window: str) -> Batch:
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": window}
        return self._call("POST", "/v1/batches", Batch, json=body)

    def batches(self) -> list[Batch]:
        """Youngest first."""
        found, params, more = list[Batch](), {"limit": "100"}, True
        while more:
            page = self._call("GET", "/v1/batches", _Batches, params=params)
            found += page.data
            params["after"], more = page.last_id or "", page.has_more
        return found

    def cancel_batch(self, id: str) -> Batch:
        return self._call("POST", f"/v1/batches/{quote(id, safe='')}/cancel", Batch)

    def models(self) -> list[str]:
        return [model["id"] for model in self._call("GET", "/v1/models", _Models).data]

    def loaded_models(self) -> set[str]:
        return {model["id"] for model in self._call("GET", "/v1/models", _Models).data if model["resident"]}

    def load(self, model: str) -> None:
        self._call("POST", f"{_model(model)}/load", dict[str, Any], timeout=_GENERATING)

    def unload(self, model: str) -> None:
        """Waits for its requests to end."""
        self._call("POST", f"{_model(model)}/unload", dict[str, Any], timeout=_GENERATING)

    def chat_stream(self, messages: Sequence[Mapping[str, str]], model: str, **params: Any) -> Iterator[Piece]:
        """Pieces as they come; leaving the iterator cancels the request."""
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": model, "messages": messages, **params, "stream": True, "stream_options": options}
        with (
            _reaching(self.url),
            self._http.stream("POST", "/v1/chat/completions", json=body, timeout=_GENERATING) as response,
        ):
            if response.is_error:
                response.read()
                raise _error(response)
            for line in _lines(response.iter_bytes()):
                if line.startswith(b"data: ") and (piece := _piece(line.removeprefix(b"data: "))):
                    yield piece

    def complete(self, prompt: str | Sequence[int], model: str, **params: Any) -> Answer:
        """The whole continuation of one prompt."""
        body = {"model": model, "prompt": prompt, **params}
        completion = self._call("POST", "/v1/completions", _Completion, json=body, timeout=_GENERATING)
        return Answer(completion.choices[0].text, completion.choices[0].finish_reason, completion.usage)

    def _call(self, method: str, path: str, type_: type[T], **options: Any) -> T:
        with _reaching(self.url):
            return _decoded(self._http.request(method, path, **options), type_)


class AsyncClient:
    """What a monitor needs, on its event loop. Its key is what `LLMOS_KEY` holds."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self.url = url
        self._http = httpx.AsyncClient(**_options(url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def status(self) -> dict[str, Any]:
        return await self._call("GET", "/v1/status", dict[str, Any])

    async def requests(self, **filters: str) -> list[RequestInfo]:
        return (await self._call("GET", "/v1/requests", _Requests, params=filters)).data

    async def control(self, command: str, **fields: Any) -> list[RequestInfo]:
        """As `Client.control`."""
        body = {"command": command, **fields}
        return (await self._call("POST", "/v1/control", _Requests, json=body, timeout=_WAITING)).data

    async def detail(self, id: str) -> RequestDetail:
        return await self._call("GET", _path(id), RequestDetail)

    async def policy(self) -> PolicyInfo:
        return await self._call("GET", "/v1/policy", PolicyInfo)

    async def set_policy(self, name: str) -> PolicyInfo:
        return await self._call("PUT", "/v1/policy", PolicyInfo, json={"policy": name})

    async def _call(self, method: str, path: str, type_: type[T], **options: Any) -> T:
        with _reaching(self.url):
            return _decoded(await self._http.request(method, path, **options), type_)


# ---------------------------------------------------------------- what the daemon answers


class _Requests(msgspec.Struct):
    data: list[RequestInfo]


class _Batches(msgspec.Struct):
    data: list[Batch]
    has_more: bool
    last_id: str | None


class _Models(msgspec.Struct):
    data: list[dict[str, Any]]


class _TextChoice(msgspec.Struct):
    text: str
    finish_reason: str


class _Completion(msgspec.Struct):
    choices: list[_TextChoice]
    usage: Usage


class _Delta(msgspec.Struct):
    content: str | None = None


class _ChunkChoice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _ErrorDetail(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] = []
    usage: Usage | None = None
    error: _ErrorDetail | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


def _options(url: str) -> dict[str, Any]:
    """No proxy stands before a daemon; certificates, slow to load, are needed for https only."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{KEY} holds no key: `llmosd keys add` prints one")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    options = {"base_url": url, "timeout": _QUICK, "trust_env": False, "verify": url.startswith("https:")}
    return options | {"headers": headers}


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidRequest(f"{url!r} is no HTTP address: {error}") from None
    except httpx.ConnectError:
        raise Unavailable(f"no daemon answers at {url}: start it with `llmosd start`") from None
    except httpx.TimeoutException:
        raise Unavailable(f"the daemon at {url} does not answer in time; `llmosd doctor` may say why") from None
    except httpx.HTTPError as error:
        raise Unavailable(f"the connection to the daemon at {url} broke: {error}") from error


def _path(id: str) -> str:
    return f"/v1/requests/{quote(id, safe='')}"


def _model(id: str) -> str:
    return f"/v1/models/{quote(id, safe='')}"


def _decoded(response: httpx.Response, type_: type[T]) -> T:
    if response.is_error:
        raise _error(response)
    try:
        return msgspec.json.decode(response.content, type=type_)
    except UNREADABLE as error:
        raise Unavailable(f"what answers at {response.url} is no llmosd daemon: {error}") from None


def _error(response: httpx.Response) -> LlmosError:
    try:
        detail = msgspec.json.decode(response.content, type=_ErrorBody).error
    except UNREADABLE:
        return Unavailable(f"what answers at {response.url} is no llmosd daemon (HTTP {response.status_code})")
    if response.status_code == 429:
        leaf = _BUSY.get(detail.code or "", QueueFull)
        return leaf(detail.message, retry_after_s=float(response.headers.get("retry-after", "1")))
    return _leaf(detail, response.status_code)


def _leaf(detail: _ErrorDetail, status: int) -> LlmosError:
    leaf = _LEAVES.get(detail.code or "") or _STATUS.get(status, LlmosError)
    return leaf(detail.message, param=detail.param)


def _lines(received: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines, ended by \\n alone: httpx's own would also split at the line separators of Unicode inside a text."""
    rest = b""
    for data in received:
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _piece(data: bytes) -> Piece | None:
    """None for the end mark and for a chunk that says nothing new. Raises the error that ended the stream."""
    if data == b"[DONE]":
        return None
    chunk = msgspec.json.decode(data, type=_Chunk)
    if chunk.error is not None:
        raise _leaf(chunk.error, 500)
    if not chunk.choices:
        return None
    choice = chunk.choices[0]
    return Piece(choice.delta.content or "", choice.finish_reason, chunk.usage)
