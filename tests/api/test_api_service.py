from __future__ import annotations

import asyncio

import pytest
from api_house import MODEL, PACE_S, House

from llmosd.application.stream import together
from llmosd.errors import InvalidRequest
from llmosd.types import Output, RequestSpec, Sampling, State


def spec(id: str, **sampling: int) -> RequestSpec:
    return RequestSpec(id, MODEL, tuple(b"hello"), Sampling(**{"max_tokens": 4, **sampling}))


async def test_a_stream_gives_all_outputs_and_the_final_view(house: House) -> None:
    house.executor.gate.clear()
    stream = await house.service.submit(spec("a"))
    assert stream.view.state is State.QUEUED and house.recorded == [stream.view]
    house.executor.gate.set()
    outputs: list[Output] = [output async for came in together([stream]) for _, output in came]
    assert "".join(output.text for output in outputs) == "abcd"
    assert stream.view.state is State.FINISHED and stream.view.completion_tokens == 4
    stream.close("too late to matter")
    assert await house.service.get("a") == stream.view


async def test_an_id_serves_once(house: House) -> None:
    await house.service.submit(spec("a"))
    with pytest.raises(InvalidRequest, match="taken"):
        await house.service.submit(spec("a"))
    await house.service.roster.idle()
    with pytest.raises(InvalidRequest, match="taken"):
        await house.service.submit(spec("a"))


async def test_a_refused_request_leaves_nothing_behind(house: House) -> None:
    with pytest.raises(InvalidRequest):
        await house.service.submit(spec("a", max_tokens=0))
    await house.service.roster.idle()
    assert not house.service.roster.knows("a")


@pytest.mark.parametrize("max_tokens", [500, 0])
async def test_a_caller_that_leaves_before_the_answer_leaves_nothing_behind(house: House, max_tokens: int) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(house.service.submit(spec("a", max_tokens=max_tokens)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await house.service.roster.idle()
    assert not house.service._opening and not house.service._replies
    assert max_tokens == 0 or (await house.service.get("a")).state is State.CANCELLED


async def test_a_failing_subscriber_disturbs_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_batch: object) -> None:
        raise RuntimeError("broken subscriber")

    house.service.subscribe(fail)
    later: list[object] = []
    house.service.subscribe(later.append)
    stream = await house.service.submit(spec("a"))
    assert len([output async for came in together([stream]) for output in came]) == 4 and later
    assert "a subscriber of the engine's batches failed" in caplog.text
