"""The models that requests may name: which there are, which are in memory, and what is refused before it is loaded."""

from __future__ import annotations

from api_house import MODEL, open_house

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
