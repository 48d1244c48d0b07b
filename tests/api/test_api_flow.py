"""A client that does not read: its request pauses, others go on, and nothing is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from api_house import MODEL, House, open_house

from llmosd.application.flow import BackPressure
from llmosd.application.stream import RequestStream, together
from llmosd.errors import Cancelled
from llmosd.system.control import Resume, Selection, Suspend
from llmosd.types import RequestSpec, Sampling, State

SLOW = Selection(("slow",))
SMALL = BackPressure(tokens=10, timeout_s=600)


def spec(id: str, tokens: int = 60, n: int = 1) -> RequestSpec:
    return RequestSpec(id, MODEL, tuple(b"hello"), Sampling(max_tokens=tokens, n=n))


async def text_of(stream: RequestStream) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for came in together([stream]):
        for _, output in came:
            texts[output.choice] = texts.get(output.choice, "") + output.text
    return texts


def alphabet(tokens: int, start: int = 0) -> str:
    return "".join(chr(ord("a") + (start + i) % 26) for i in range(tokens))


def is_in(house: House, id: str, state: State) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return (await house.service.get(id)).state is state

    return look


async def test_an_unread_request_pauses_while_others_run_to_their_end() -> None:
    async with open_house(back_pressure=SMALL) as house:
        house.keep_step()
        slow = await house.service.submit(spec("slow"))
        await house.until_async(is_in(house, "slow", State.PAUSED))
        view = await house.service.get("slow")
        assert view.pages == 0 and 10 <= view.completion_tokens <= 12
        other = await house.ai.completions.create(model=MODEL, prompt="x", max_tokens=60)
        assert other.choices[0].text == alphabet(60)
        assert (await house.service.get("slow")).completion_tokens == view.completion_tokens
        assert [row["state"] for row in (await house.http.get("/v1/requests?state=paused")).json()["data"]] == [
            "paused"
        ]
        assert await text_of(slow) == {0: alphabet(60)}
        assert slow.view.state is State.FINISHED


async def test_all_choices_share_one_buffer() -> None:
    async with open_house(back_pressure=SMALL) as house:
        house.keep_step()
        slow = await house.service.submit(spec("slow", n=3))
        await house.until_async(is_in(house, "slow", State.PAUSED))
        assert (await house.service.get("slow")).completion_tokens <= 18
        assert await text_of(slow) == {choice: alphabet(60, choice) for choice in range(3)}


async def test_a_client_that_never_reads_is_given_up() -> None:
    async with open_house(back_pressure=BackPressure(10, 0.01)) as house:
        house.keep_step()
        slow = await house.service.submit(spec("slow"))
        await house.until_async(is_in(house, "slow", State.CANCELLED))
        with pytest.raises(Cancelled, match=r"read nothing for 0\.01 s"):
            await text_of(slow)


async def test_who_is_resumed_by_a_person_pauses_again() -> None:
    async with open_house(back_pressure=SMALL) as house:
        house.keep_step()
        slow = await house.service.submit(spec("slow"))
        await house.until_async(is_in(house, "slow", State.PAUSED))
        assert [view.state for view in await house.service.control(Suspend(), SLOW)] == [State.SUSPENDED]
        assert [view.state for view in await house.service.control(Resume(), SLOW)] == [State.PREEMPTED]
        await house.until_async(is_in(house, "slow", State.PAUSED))
        assert (await house.service.get("slow")).completion_tokens < 60
        assert await text_of(slow) == {0: alphabet(60)}


async def test_a_paused_request_is_hibernated_and_read_from_any_place_by_the_next_daemon(tmp_path: Path) -> None:
    async with open_house(back_pressure=SMALL, home=tmp_path) as house:
        house.keep_step()
        await house.service.submit(spec("slow"))
        await house.until_async(is_in(house, "slow", State.PAUSED))
        [view] = await house.hibernation.hibernate(["slow"])
        assert view.state is State.SUSPENDED
    async with open_house(back_pressure=SMALL, home=tmp_path) as house:
        await house.until_async(is_in(house, "slow", State.FINISHED))  # who comes back has no buffer that fills
        answer = await house.http.get("/v1/requests/slow/stream?from=20")
        assert "data: [DONE]" in answer.text


async def test_a_suspended_request_outlives_a_client_that_never_reads() -> None:
    async with open_house(back_pressure=SMALL) as house:
        house.keep_step()
        slow = await house.service.submit(spec("slow"))
        await house.until_async(is_in(house, "slow", State.PAUSED))
        await house.service.control(Suspend(), SLOW)
        slow._give_up()  # as when its time is over
        assert slow.over
        with pytest.raises(Cancelled, match="/v1/requests/slow/stream has the rest"):
            await text_of(slow)
        await house.service.control(Resume(), SLOW)
        await house.until_async(is_in(house, "slow", State.FINISHED))
