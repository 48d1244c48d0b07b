"""Memory and quotas as clients see them: /v1/memory, `llmosd mem`, `llmosd ps`, what waits and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from api_house import LIMITS, MODEL, PACE_S, House, open_house

from llmosd.application.cli import main
from llmosd.system.control import Selection, Suspend
from llmosd.types import Output, Quota, Quotas, State

COMPLETIONS = "/v1/completions"
PAGE_BYTES = 64


def body(user: str, tokens: int = 400) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hello", "max_tokens": tokens, "user": user}


async def running(house: House, *users: str) -> list[asyncio.Task[Any]]:
    """A long request of each user, in this order, as far as quotas let them run."""
    house.executor.pause_s = PACE_S
    tasks = []
    for count, user in enumerate(users, 1):
        tasks.append(asyncio.create_task(house.http.post(COMPLETIONS, json=body(user))))
        await house.until(lambda count=count: len(house.recorded) == count)
    await house.until(lambda: len(_with_output(house)) + _parked(house) == len(users))
    return tasks


def _with_output(house: House) -> set[str]:
    return {event.id for batch in house.batches for event in batch.events if isinstance(event, Output)}


def _parked(house: House) -> int:
    return house.service.stats.parked if house.service.stats else 0


async def cli(house: House, *args: str) -> int:
    host, port = house.url.removeprefix("http://").split(":")
    return await asyncio.to_thread(main, [*args, "--host", host, "--port", port])


async def cancel_all(house: House, tasks: list[asyncio.Task[Any]]) -> None:
    for view in await house.service.requests():
        if view.state is not State.CANCELLED:
            await house.http.delete(f"/v1/requests/{view.id}")
    await asyncio.gather(*tasks)


async def test_memory_adds_up() -> None:
    async with open_house(prefixes=True) as house:
        tasks = await running(house, "alice", "bob", "bob")
        found = (await house.http.get("/v1/memory")).json()
        [pool], segments = found["pools"], {segment["kind"]: segment for segment in found["segments"]}
        pages, waste = pool["pages"], pool["waste"]
        assert segments["weights"] == {"owner": MODEL, "kind": "weights", "offset": 500, "bytes": 1000}
        assert (segments["process"]["bytes"], segments["pool"]["bytes"]) == (500, LIMITS.pages * PAGE_BYTES)
        assert found["free"] + sum(segment["bytes"] for segment in found["segments"]) == found["budget"]
        [model] = found["models"]
        assert (model["model"], model["resident"], model["pages_most"]) == (MODEL, True, LIMITS.pages)
        assert pages["used"] + pages["leaving"] + pages["cached"] + pages["free"] == pages["total"] == LIMITS.pages
        assert len(pool["map"]) * pool["pages_per_letter"] >= LIMITS.pages
        wasted = waste["internal"] + waste["duplicate"] + waste["reserved"]
        assert waste["bytes"] == wasted * PAGE_BYTES // LIMITS.page_tokens
        assert [(user["user"], user["running"]) for user in found["users"]] == [("bob", 2), ("alice", 1)]
        assert sum(user["pages"] for user in found["users"]) >= pages["used"] > 0
        assert found["running"] == 3 and 0 < found["hit_rate"] < 1
        await cancel_all(house, tasks)
        later = (await house.http.get("/v1/memory")).json()
        assert (later["running"], later["pools"][0]["pages"]["used"], later["pools"][0]["waste"]["internal"]) == (
            0,
            0,
            0,
        )
        assert all(user["page_s"] > 0 for user in later["users"])


async def test_the_command_shows_the_same_to_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house(prefixes=True) as house:
        tasks = await running(house, "alice")
        await house.service.control(Suspend(), Selection((house.recorded[0].id,)))
        assert await cli(house, "mem", "--json") == 0
        assert json.loads(capsys.readouterr().out) == (await house.http.get("/v1/memory")).json()
        assert await cli(house, "mem") == 0
        text = capsys.readouterr().out
        assert f"pool of {MODEL}: {LIMITS.pages} pages of {LIMITS.page_tokens} tokens" in text
        assert "suspended 1" in text and "alice" in text and "weights" in text
        await cancel_all(house, tasks)


async def test_over_quota_waits_and_ps_says_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house(quotas=Quotas(users={"bob": Quota(running=1)})) as house:
        tasks = await running(house, "bob", "bob", "alice")
        [first, second, other] = house.recorded
        assert await cli(house, "ps", "--json") == 0
        rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
        assert (rows[second.id]["state"], rows[second.id]["waits_for"]) == ("queued", "quota: running 1 of 1")
        assert rows[other.id]["state"] == rows[first.id]["state"] == "decode"
        assert house.value("llmos_requests_parked") == 1
        await house.http.delete(f"/v1/requests/{first.id}")
        await house.until(lambda: house.service.stats is not None and house.service.stats.parked == 0)
        await cancel_all(house, tasks)


async def test_what_alone_exceeds_the_quota_is_refused() -> None:
    async with open_house(quotas=Quotas(users={"bob": Quota(pages=2)})) as house:
        answer = await house.http.post(COMPLETIONS, json=body("bob"))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded" and "quota of user 'bob' is 2 pages" in error["message"]
        assert (await house.http.post(COMPLETIONS, json=body("bob", 3))).status_code == 200
