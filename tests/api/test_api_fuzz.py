"""Whatever is sent, the answer is 200 or a 4xx in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_house import MODEL, open_house
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.application.http.schema import ChatBody, CompletionBody
from llmosd.application.http.unimplemented import CHAT_UNIMPLEMENTED, COMPLETION_UNIMPLEMENTED

TEXT = st.text("ab<|im_end>\x00\x1b\né\ud800\U0001f600", max_size=12)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
NAMES = (
    st.sampled_from(
        sorted(
            {
                *ChatBody.__struct_fields__,
                *CompletionBody.__struct_fields__,
                *CHAT_UNIMPLEMENTED,
                *COMPLETION_UNIMPLEMENTED,
            }
        )
    )
    | TEXT
)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | JSON
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT | st.lists(PART, max_size=3)}
)
LIKELY = st.fixed_dictionaries(
    {"model": st.just(MODEL), "max_tokens": st.integers(1, 3)},
    optional={
        "messages": st.lists(MESSAGE | JSON, max_size=3),
        "prompt": TEXT | st.lists(TEXT | st.integers(-1, 300) | st.lists(st.integers(0, 257), max_size=4), max_size=4),
        "n": st.integers(1, 4),
        "stream": st.booleans() | st.none(),
        "logprobs": st.booleans() | st.integers(0, 3),
        "stop": TEXT | st.lists(TEXT, max_size=4),
        "user": TEXT,
    },
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A house on a loop of its own, so that plain functions can call it."""
    urls: list[str] = []
    ready = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with open_house() as house:
            stop = asyncio.Event()
            loops.append((asyncio.get_running_loop(), stop))
            urls.append(house.url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(20)
    with httpx.Client(base_url=urls[0], timeout=60, trust_env=False) as client:
        yield client
    loop, stop = loops[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


def check(response: httpx.Response) -> None:
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "code", "param"}
    assert response.headers["x-request-id"]


@settings(deadline=None, max_examples=150)
@given(LIKELY, st.dictionaries(NAMES, JSON, max_size=1), st.sampled_from(["/v1/completions", "/v1/chat/completions"]))
def test_any_object(http: httpx.Client, likely: dict[str, Any], odd: dict[str, Any], path: str) -> None:
    check(http.post(path, content=json.dumps(likely | odd)))


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["GET", "POST", "PATCH", "DELETE"]),
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/requests/x", "/v1/requests", "/nothing"]),
    st.binary(max_size=40),
    st.text('abc._- é"<', max_size=70),
)
def test_any_bytes(http: httpx.Client, method: str, path: str, content: bytes, id: str) -> None:
    check(http.request(method, path, content=content, headers={"X-Request-Id": id.strip().encode()}))
