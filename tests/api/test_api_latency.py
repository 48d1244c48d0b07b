"""Where a request's time went, over HTTP: in `usage.llmos`, and for live and ended requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_house import LIMITS, MODEL, MS, PACE_S, House, open_house

from llmosd.application.explain import PHASES

EXPLAIN = {"llmos": {"explain": True}}


def check_sums(latency: dict[str, Any]) -> None:
    assert sum(latency[f"{phase}_ns"] for phase in PHASES) == latency["total_ns"]
    assert sum(latency["queued_by"].values()) == latency["queued_ns"]
    assert all(isinstance(latency[f"{phase}_ns"], int) for phase in PHASES)


async def test_usage_explains_when_asked_and_the_request_says_the_same(house: House) -> None:
    ask = house.ai.completions.create
    plain = await ask(model=MODEL, prompt="hello", max_tokens=4)
    assert "llmos" not in plain.usage.model_dump()
    told = await ask(model=MODEL, prompt="hello", max_tokens=4, extra_body=EXPLAIN)
    latency = told.usage.model_dump()["llmos"]
    check_sums(latency)
    assert latency["prefill_ns"] == (1 + 5) * MS, "a step, and five prompt tokens"
    assert latency["decode_ns"] == 3 * (1 + 2) * MS and latency["cause"] == "decode"
    detail = (await house.http.get(f"/v1/requests/{told.id}")).json()
    assert detail["latency"] == latency and detail["total_ms"] * MS == pytest.approx(latency["total_ns"])


async def test_a_stream_explains_with_its_usage_figures(house: House) -> None:
    options = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    stream = await house.ai.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, extra_body=EXPLAIN
    )
    *before, last = [chunk async for chunk in stream]
    assert all(chunk.usage is None for chunk in before)
    check_sums(last.usage.model_dump()["llmos"])
    refused = await house.http.post("/v1/chat/completions", json={**options, **EXPLAIN, "stream": True})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "llmos.explain" and "include_usage" in refused.json()["error"]["message"]


@pytest.mark.parametrize("wrong", [{"explian": True}, {"explain": 1}, True])
async def test_what_is_no_option_is_refused_by_name(house: House, wrong: Any) -> None:
    body = {"model": MODEL, "prompt": "hello", "llmos": wrong}
    error = (await house.http.post("/v1/completions", json=body)).json()["error"]
    assert error["param"].startswith("llmos")


async def test_of_several_prompts_the_slowest_is_explained() -> None:
    async with open_house(limits=LIMITS.__class__(1, 64, 3, 512, 16, 256)) as house:
        told = await house.ai.completions.create(
            model=MODEL, prompt=["hello", "hello"], max_tokens=4, extra_body=EXPLAIN
        )
        latency = told.usage.model_dump()["llmos"]
        check_sums(latency)
        assert latency["queued_by"]["slots"] >= (1 + 5 + 3 * 3) * MS, "it stood behind the other one"


async def test_a_live_request_says_why_it_waits() -> None:
    async with open_house(limits=LIMITS.__class__(1, 64, 3, 512, 16, 256)) as house:
        house.executor.pause_s = PACE_S
        tasks = [
            asyncio.create_task(
                house.http.post(
                    "/v1/completions",
                    json={"model": MODEL, "prompt": "hello", "max_tokens": 400},
                    headers={"X-Request-Id": id},
                )
            )
            for id in ("first", "second")
        ]
        await house.until(lambda: house.service.stats is not None and house.service.stats.waiting == 1)
        views = {view.id: view for view in await house.service.requests()}
        waiting = next(id for id, view in views.items() if view.position)
        await house.until(lambda: house.clock.now - views[waiting].arrived > 50 * MS)
        detail = (await house.http.get(f"/v1/requests/{waiting}")).json()
        check_sums(detail["latency"])
        assert (detail["waits_for"], detail["latency"]["cause"]) == ("slots", "queued for slots")
        assert detail["latency"]["timeline"][-1][0] == "queued"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
