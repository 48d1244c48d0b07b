"""The policy over HTTP and on the command line: shown, changed with requests in flight, refused by name."""

from __future__ import annotations

import asyncio

import pytest
from api_house import MODEL, PACE_S, House, open_house

from llmosd.application.cli import main
from llmosd.system.policy import POLICIES
from llmosd.types import POLICY_NAMES, PolicyChanged

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 60}


async def cli(house: House, *args: str) -> int:
    host, port = house.url.removeprefix("http://").split(":")
    return await asyncio.to_thread(main, [*args, "--host", host, "--port", port])


def test_the_names_that_users_may_give_are_those_there_are() -> None:
    assert tuple(POLICIES) == POLICY_NAMES


async def test_every_change_is_an_event_and_loses_no_request() -> None:
    async with open_house() as house:
        before = (await house.http.get("/v1/policy")).json()
        assert before["policies"] == list(POLICY_NAMES)
        house.executor.pause_s = PACE_S
        tasks = [asyncio.create_task(house.http.post("/v1/completions", json=BODY)) for _ in range(6)]
        await house.until(lambda: len(house.recorded) == 6)
        names = [name for name in POLICY_NAMES if name != before["policy"]]
        for name in names:
            assert (await house.http.put("/v1/policy", json={"policy": name})).json()["policy"] == name
        house.executor.pause_s = 0
        assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 6
        events = [event for batch in house.batches for event in batch.events if isinstance(event, PolicyChanged)]
        assert [event.new for event in events] == names
        assert all(event.reason == "a person" for event in events)


async def test_what_is_no_policy_is_refused_by_name_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house() as house:
        before = (await house.http.get("/v1/policy")).json()
        refused = await house.http.put("/v1/policy", json={"policy": "lottery"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "policy"
        assert "'lottery'" in refused.text and all(name in refused.text for name in POLICY_NAMES)
        assert await cli(house, "policy", "lottery") == 2
        assert "use one of fcfs, priority, fair, dynamic" in capsys.readouterr().err
        assert (await house.http.get("/v1/policy")).json() == before


async def test_the_command_shows_and_changes_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house() as house:
        assert await cli(house, "policy", "fair") == 0
        assert await cli(house, "policy") == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.split() == ["policy", "fair"] for line in lines) == 2
        assert house.service.stats is not None and house.service.stats.policy == "fair"
