from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import pytest
from api_house import MODEL, PACE_S, House

from llmosd.application.client import AsyncClient, Client
from llmosd.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    LlmosError,
    NotFound,
    QueueFull,
    Unavailable,
)

HI = [{"role": "user", "content": "hi"}]


async def test_what_the_command_line_asks(house: House) -> None:
    def ask() -> None:
        with Client(house.url) as client:
            answer = client.complete("hello", MODEL, max_tokens=3, user="ann")
            assert (answer.text, answer.finish) == ("abc", "length")
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)
            (info,) = client.requests()
            assert (info.user, info.state, info.completion_tokens) == ("ann", "finished", 3)
            assert client.request(info.id) == info
            assert client.requests(user="bob") == []
            assert client.status()["model"] == MODEL
            assert client.models() == [MODEL]

    await asyncio.to_thread(ask)


async def test_a_chat_comes_in_pieces_that_count_tokens(house: House) -> None:
    def ask() -> list[Any]:
        with Client(house.url) as client:
            return list(client.chat_stream(HI, MODEL, max_tokens=3))

    pieces = await asyncio.to_thread(ask)
    assert "".join(piece.text for piece in pieces) == "abc"
    assert pieces[-1].finish == "length"
    assert [piece.usage.completion_tokens for piece in pieces if piece.text] == [1, 2, 3]


async def test_leaving_a_chat_cancels_it(house: House) -> None:
    house.executor.pause_s = PACE_S

    def ask() -> int:
        with Client(house.url) as client:
            pieces = client.chat_stream(HI, MODEL)
            taken = len(list(islice(pieces, 3)))
            pieces.close()  # type: ignore[attr-defined]
            return taken

    assert await asyncio.to_thread(ask) == 3
    await house.until(lambda: house.service.stats is not None and house.service.stats.cancelled == 1)


async def test_an_error_in_a_stream_is_raised(house: House) -> None:
    house.executor.pause_s = PACE_S

    def ask() -> None:
        with Client(house.url) as client, Client(house.url) as other:
            for piece in client.chat_stream(HI, MODEL):
                if piece.text == "c":
                    other.cancel(other.requests(state="decode")[0].id)

    with pytest.raises(Cancelled):
        await asyncio.to_thread(ask)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"model": "other"}, NotFound),
        ({"model": MODEL, "temperature": 9}, InvalidRequest),
        ({"model": MODEL, "max_tokens": 512}, ContextTooLong),
    ],
)
async def test_errors_come_back_as_they_were(house: House, params: dict[str, Any], error: type[LlmosError]) -> None:
    def ask() -> None:
        with Client(house.url) as client:
            client.complete("hello", **params)

    with pytest.raises(error) as caught:
        await asyncio.to_thread(ask)
    assert caught.value.param in params


async def test_a_full_queue_carries_its_delay(house: House) -> None:
    def ask() -> None:
        with Client(house.url) as client:
            client.complete(["x"] * 60, MODEL, max_tokens=500)  # type: ignore[arg-type]

    with pytest.raises(QueueFull) as caught:
        await asyncio.to_thread(ask)
    assert caught.value.retry_after_s >= 1


async def test_what_the_monitor_does(house: House) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(
        house.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 500})
    )
    await house.until(lambda: bool(house.executor.started))
    async with AsyncClient(house.url) as client:
        (info,) = await client.requests(state="decode")
        assert [changed.nice for changed in await client.control("nice", ids=[info.id], nice=5)] == [5]
        assert (await client.detail(info.id)).latency.cause
        assert [ended.state for ended in await client.control("kill", user="")] == ["cancelled"]
        assert (await client.status())["state"] == "serving"
        with pytest.raises(NotFound):
            await client.detail("../../health")
    assert (await call).status_code == 499


async def test_where_nothing_answers(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    with Client(url) as client, pytest.raises(Unavailable, match=r"no daemon answers at .*llmosd start"):
        client.status()
    async with AsyncClient(url) as client:
        with pytest.raises(Unavailable, match="llmosd start"):
            await client.status()
    with Client("not a url") as client, pytest.raises(InvalidRequest):
        client.status()


async def test_what_is_no_daemon() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(Unavailable, match="no llmosd daemon"):
            await client.status()
