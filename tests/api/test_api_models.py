"""The models that requests may name: which there are, which are in memory, and what is refused before it is loaded."""

from __future__ import annotations

import asyncio

import pytest
from api_house import MODEL, PACE_S, House, open_house

from llmosd.application.cli import main
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import Fcfs
from llmosd.system.residency import ModelEntry, ModelSize

LIMITS = Limits(slots=1, token_budget=8, queue_limit=9, context=64, page_tokens=8, pages=8)
MESSAGES = [{"role": "user", "content": "x"}]


def entry(name: str, weights: int) -> ModelEntry:
    return ModelEntry(Kernel(LIMITS, Fcfs(), model=name), ModelSize(weights, workspace=100, page=10, least=8))


async def test_all_installed_models_are_listed_the_default_one_first() -> None:
    async with open_house(others={"other": entry("other", 1000)}) as house:
        found = (await house.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["max_model_len"], card["resident"]) for card in found] == [
            (MODEL, 512, True),
            ("other", 64, False),
        ]
        assert (await house.http.get("/v1/models/other")).json() == found[1]
        assert {model.id for model in (await house.ai.models.list()).data} == {MODEL, "other"}


async def test_a_model_that_is_not_installed_is_not_found() -> None:
    async with open_house() as house:
        for answer in (
            await house.http.post("/v1/completions", json={"model": "third", "prompt": "x"}),
            await house.http.post("/v1/chat/completions", json={"model": "third", "messages": MESSAGES}),
            await house.http.get("/v1/models/third"),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert "'third'" in error["message"]


async def test_a_model_that_does_not_fit_is_refused_with_the_sizes() -> None:
    async with open_house(others={"huge": entry("huge", 90 << 20)}) as house:
        for _ in range(2):
            answer = await house.http.post("/v1/completions", json={"model": "huge", "prompt": "x"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["type"]) == (
                400,
                "model_too_large",
                "invalid_request_error",
            )
            assert "huge needs 90 MiB for weights" in error["message"] and "`memory`" in error["message"]
        assert house.service.stats.accepted == 0
        assert [model.name for model in (await house.service.inspect()).models] == [MODEL]


async def cli(house: House, *args: str) -> int:
    host, port = house.url.removeprefix("http://").split(":")
    return await asyncio.to_thread(main, [*args, "--host", host, "--port", port])


async def test_models_are_loaded_and_unloaded_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house(others={"other": entry("other", 1000)}) as house:
        answer = await house.http.post("/v1/models/other/load")
        assert (answer.status_code, answer.json()["id"], answer.json()["resident"]) == (200, "other", True)
        assert await cli(house, "models", "load", "other") == 0, "it is there already"
        assert await cli(house, "models", "unload", "other") == 0
        assert capsys.readouterr().out == "other is loaded\nother is unloaded\n"
        assert [card["resident"] for card in (await house.http.get("/v1/models")).json()["data"]] == [True, False]
        assert await cli(house, "models", "unload", "other") == 0, "it is gone already"
        answer = await house.http.post(f"/v1/models/{MODEL}/unload")
        assert not answer.json()["resident"], "the default model, too"
        kinds = [segment.kind for segment in (await house.service.inspect()).segments]
        assert kinds == ["process"]


async def test_a_model_that_cannot_be_loaded_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    others = {"huge": entry("huge", 90 << 20), "broken": entry("broken", 10)}
    async with open_house(others=others) as house:
        house.executor.broken["broken"] = "no space left"
        for path in ("third/load", "third/unload"):
            answer = await house.http.post(f"/v1/models/{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert (await house.http.post("/v1/models/huge/load")).json()["error"]["code"] == "model_too_large"
        answer = await house.http.post("/v1/models/broken/load")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_error")
        assert answer.json()["error"]["message"] == "broken could not be loaded: no space left"
        assert await cli(house, "models", "load", "third") == 2
        assert await cli(house, "models", "load", "broken") == 1
        assert "no space left" in capsys.readouterr().err


async def test_an_unload_waits_for_requests_and_gives_way_to_a_load() -> None:
    async with open_house() as house:
        house.executor.pause_s = PACE_S
        body = {"model": MODEL, "prompt": "x", "max_tokens": 60}
        asked = asyncio.create_task(house.http.post("/v1/completions", json=body))
        await house.until(lambda: bool(house.recorded))
        for overtaken in (True, False):
            unload = asyncio.create_task(house.service.unload_model(MODEL))
            await house.service.inspect()
            assert not unload.done()
            if overtaken:
                assert (await house.http.post(f"/v1/models/{MODEL}/load")).json()["resident"]
                assert (await unload).resident
        house.executor.pause_s = 0
        assert (await asked).json()["usage"]["completion_tokens"] == 60
        assert not (await unload).resident
