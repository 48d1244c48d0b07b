from __future__ import annotations

import asyncio

import pytest
from api_house import MODEL, MS, PACE_S, House
from hypothesis import given
from hypothesis import strategies as st

from llmosd.application.departures import Departures
from llmosd.application.stream import together
from llmosd.errors import InvalidRequest
from llmosd.types import Output, RequestSpec, Sampling, State

S = 1000 * MS


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


async def test_the_delay_of_a_full_queue_follows_the_measured_rate(house: House) -> None:
    house.executor.pause_s = PACE_S
    for number in range(7):
        await house.service.submit(spec(str(number), max_tokens=500))
    await house.until(lambda: house.service.stats is not None and house.service.stats.waiting == 3)
    start = house.service.roster.departures._busy_since
    house.service.clock = lambda: start + 10 * S
    assert house.service.retry_after_s() == pytest.approx(30)  # none finished in 10 s: 0.1/s, and 3 wait
    for finished in (2, 4, 6):
        house.service.roster.departures.add(start + finished * S)
    assert house.service.retry_after_s() == pytest.approx(10)  # 0.3/s


def test_departures_forget_the_last_minute_and_idle_time() -> None:
    departures = Departures()
    for second in range(10):
        departures.add(second * S)
    assert departures.per_s(10 * S) == pytest.approx(1.0)
    assert departures.per_s(65 * S) == pytest.approx(5 / 60)
    departures.busy_since(100 * S)
    assert departures.per_s(102 * S) == pytest.approx(0.5)


@given(st.lists(st.integers(0, 10**12), max_size=30), st.integers(0, 10**12))
def test_a_rate_is_never_zero(times: list[int], busy_since: int) -> None:
    departures = Departures()
    departures.busy_since(busy_since)
    for now in sorted(times):
        departures.add(now)
        assert departures.per_s(now) > 0
