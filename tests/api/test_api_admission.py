"""Who is refused or given up over HTTP: deadlines, time in the queue, too much at once; and when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from api_house import LIMITS, MODEL, MS, PACE_S, House, open_house

from llmosd.errors import DeadlineExceeded, QueueTimeout, RateLimited
from llmosd.types import Quota, Quotas, State

COMPLETIONS = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hello", "max_tokens": 4, **fields}


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code and error["message"]
    return error


@asynccontextmanager
async def occupied(house: House) -> AsyncIterator[None]:
    """The only slot is taken for as long as time passes in steps of a few milliseconds."""
    house.executor.pause_s = PACE_S
    task = asyncio.create_task(house.http.post(COMPLETIONS, json=body(max_tokens=500)))
    await house.until(lambda: bool(house.executor.started))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def complete(house: House, **fields: Any) -> None:
    """By this house's own client."""

    def ask() -> None:
        with house.client() as client:
            client.complete("hello", MODEL, **fields)

    await asyncio.to_thread(ask)


@pytest.mark.parametrize("ms", [0, -5])
async def test_a_deadline_in_the_past_is_refused(house: House, ms: int) -> None:
    error = error_of(await house.http.post(COMPLETIONS, json=body(deadline_ms=ms)), 400, "invalid_request")
    assert error["param"] == "deadline_ms" and "in the past" in error["message"]
    error_of(await house.http.post(COMPLETIONS, json=body(deadline_ms=10**13)), 400, "invalid_request")
    assert not house.recorded


async def test_a_deadline_that_passes_ends_the_request(house: House) -> None:
    answer = await house.http.post(
        COMPLETIONS, json=body(max_tokens=400, deadline_ms=50), headers={"X-Request-Id": "r"}
    )
    error = error_of(answer, 504, "deadline_exceeded")
    assert error["type"] == "timeout_error" and answer.headers["x-should-retry"] == "false"
    view = await house.service.get("r")
    assert view.state is State.FAILED and 0 < view.completion_tokens < 400
    assert 50 * MS <= view.times.total <= 54 * MS, "at the next step"
    with pytest.raises(DeadlineExceeded):
        await complete(house, max_tokens=400, deadline_ms=50)
    in_time = await house.http.post(COMPLETIONS, json=body(deadline_ms=50))
    assert in_time.status_code == 200


async def test_a_stream_tells_of_its_deadline(house: House) -> None:
    stream = await house.ai.completions.create(**body(max_tokens=400), stream=True, extra_body={"deadline_ms": 50})
    with pytest.raises(openai.APIError, match="deadline"):
        async for _ in stream:
            pass


async def test_who_is_not_admitted_in_time_hears_when_to_come_back() -> None:
    async with open_house(limits=replace(LIMITS, slots=1, queue_timeout=50 * MS)) as house, occupied(house):
        late = await house.http.post(COMPLETIONS, json=body())
        error_of(late, 429, "queue_timeout")
        assert int(late.headers["retry-after"]) >= 1
        with pytest.raises(QueueTimeout) as caught:
            await complete(house)
        assert caught.value.retry_after_s >= 1


async def test_a_queue_that_is_full_of_tokens() -> None:
    async with open_house(limits=replace(LIMITS, slots=1, queue_tokens=100)) as house, occupied(house):
        waiting = asyncio.create_task(house.http.post(COMPLETIONS, json=body(max_tokens=90)))
        await house.until(lambda: house.service.stats is not None and house.service.stats.waiting == 1)
        refused = await house.http.post(COMPLETIONS, json=body())
        assert "95 tokens are waiting" in error_of(refused, 429, "queue_full")["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_user_who_spends_too_fast_hears_when_the_tokens_are_back() -> None:
    quotas = Quotas(users={"ann": Quota(tokens_per_s=10, burst=40)})
    async with open_house(quotas=quotas) as house:
        ask = house.ai.with_options(max_retries=0).completions.create
        await ask(**body(max_tokens=30), user="ann")
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(**body(max_tokens=30), user="ann")
        headers = caught.value.response.headers
        assert headers["retry-after"] == "3", "5 of 40 tokens are left, 35 are asked for at 10 a second"
        limit, remaining = (int(headers[f"x-ratelimit-{name}-tokens"]) for name in ("limit", "remaining"))
        assert limit == 40 and 5 <= remaining <= 7 and headers["x-ratelimit-reset-tokens"].endswith("s")
        await ask(**body(max_tokens=30), user="bob")
        with pytest.raises(RateLimited, match="'ann' may spend 10 tokens a second, 40 at once"):
            await complete(house, max_tokens=30, user="ann")


async def test_a_user_with_too_many_requests() -> None:
    async with open_house(quotas=Quotas(users={"ann": Quota(live=1)})) as house, occupied(house):
        first = asyncio.create_task(house.http.post(COMPLETIONS, json=body(max_tokens=400, user="ann")))
        await house.until(lambda: len(house.executor.started) == 2)
        refused = await house.http.post(COMPLETIONS, json=body(user="ann"))
        assert "has 1 requests already" in error_of(refused, 429, "rate_limit_exceeded")["message"]
        assert "retry-after" in refused.headers and "x-ratelimit-limit-tokens" not in refused.headers
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
