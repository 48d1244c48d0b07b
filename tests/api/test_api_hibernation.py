"""Suspended, hibernated and restored requests over HTTP: they outlive client and daemon, and are read afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_house import LIMITS, MODEL, NUMERICS, PACE_S, House, open_house

from llmosd.application import image
from llmosd.application.image import Image
from llmosd.application.image_directory import ImageDirectory
from llmosd.application.transcript import Transcript, Transcripts
from llmosd.types import FinishReason, Output, State

COMPLETIONS = "/v1/completions"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def answer(length: int, choice: int = 0) -> str:
    return "".join(LETTERS[(choice + place) % 26] for place in range(length))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hello", "max_tokens": 300, **fields}


def ask(house: House, id: str, **fields: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(house.http.post(COMPLETIONS, json=body(**fields), headers={"X-Request-Id": id}))


async def show(house: House, id: str) -> dict[str, Any]:
    shown: dict[str, Any] = (await house.http.get(f"/v1/requests/{id}")).json()
    return shown


async def half_done(house: House, id: str, **fields: Any) -> asyncio.Task[httpx.Response]:
    """A request that has generated something, with steps slow enough to catch it."""
    house.executor.pause_s = PACE_S
    call = ask(house, id, **fields)
    await house.until(lambda: sum(len(output.tokens) for output in outputs(house, id)) >= 5)
    return call


def outputs(house: House, id: str) -> list[Output]:
    return [event for batch in house.batches for event in batch.events if isinstance(event, Output) and event.id == id]


async def leave(house: House, call: asyncio.Task[httpx.Response]) -> None:
    watchers = len(watching())
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await house.until(lambda: len(watching()) < watchers)


def watching() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "disconnect watch"]


async def ended(house: House, id: str) -> dict[str, Any]:
    """Once it has, unless it does not."""
    house.executor.pause_s = 0
    await house.until(lambda: not house.service.roster.is_live(id))
    await house.hibernation.settled()
    return await show(house, id)


def pieces(stream: str) -> Iterator[dict[str, Any]]:
    """The choices of all chunks of a whole stream."""
    *events, last = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: ")]
    assert last == "[DONE]"
    for event in events:
        chunk = json.loads(event)
        assert (chunk["object"], chunk["model"]) == ("text_completion", MODEL)
        yield from chunk["choices"]


def texts(stream: str, n: int = 1) -> list[str]:
    made = [""] * n
    for piece in pieces(stream):
        made[piece["index"]] += piece["text"]
    return made


@contextmanager
def killed(home: Path, at: Path) -> Iterator[Path]:
    """What is on disk at this moment, as a daemon that is killed leaves it."""
    shutil.copytree(home, at)
    yield at


# ---------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
async def test_a_suspended_request_outlives_its_client(house: House, stream: bool) -> None:
    call = await half_done(house, "r", stream=stream)
    await house.http.post("/v1/requests/r/suspend")
    await leave(house, call)
    assert (await show(house, "r"))["state"] == "suspended"
    await house.http.post("/v1/requests/r/resume")
    shown = await ended(house, "r")
    assert (shown["state"], shown["choices"]) == (
        "finished",
        [{"index": 0, "text": answer(300), "finish_reason": "length"}],
    )


async def test_a_resumed_request_with_a_client_is_cancelled_with_it(house: House) -> None:
    call = await half_done(house, "r")
    await house.http.post("/v1/requests/r/suspend")
    await house.http.post("/v1/requests/r/resume")
    await leave(house, call)
    assert (await ended(house, "r"))["state"] == "cancelled"


async def test_a_hibernated_request_outlives_its_client_though_it_runs_again(house: House) -> None:
    call = await half_done(house, "r")
    assert (await house.http.post("/v1/requests/r/hibernate")).json()["state"] == "suspended"
    await house.http.post("/v1/requests/r/resume")
    await leave(house, call)
    assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)


async def test_a_client_that_stays_gets_its_answer(house: House) -> None:
    call = await half_done(house, "r")
    await house.http.post("/v1/requests/r/hibernate")
    await house.http.post("/v1/requests/r/resume")
    house.executor.pause_s = 0
    assert (await call).json()["choices"][0]["text"] == answer(300)


async def test_the_text_of_others_is_not_shown(house: House) -> None:
    call = await half_done(house, "r")
    assert (await show(house, "r"))["choices"] is None
    refused = await house.http.get("/v1/requests/r/stream")
    assert (refused.status_code, "its own client's only" in refused.json()["error"]["message"]) == (400, True)
    house.executor.pause_s = 0
    await call
    assert (await show(house, "r"))["choices"] is None
    assert (await house.http.get("/v1/requests/nobody/stream")).status_code == 404
    assert "choices" not in (await house.http.get("/v1/requests")).json()["data"][0]


# ---------------------------------------------------------------- reading afterwards


async def test_a_stream_goes_on_from_where_its_reader_is(house: House) -> None:
    await half_done(house, "r", n=2)
    await house.http.post("/v1/requests/r/suspend")
    had = [choice["text"] for choice in (await show(house, "r"))["choices"]]
    assert had == [answer(len(text), choice) for choice, text in enumerate(had)] and all(had)
    skips = f"{len(had[0])},3"
    reading = asyncio.create_task(house.http.get(f"/v1/requests/r/stream?from={skips}"))
    await house.until(lambda: len(watching()) == 2)
    await house.http.post("/v1/requests/r/resume")
    house.executor.pause_s = 0
    assert texts((await reading).text, 2) == [answer(300)[len(had[0]) :], answer(300, 1)[3:]]


async def test_a_stream_of_an_ended_request_is_whole_and_repeatable(house: House) -> None:
    await half_done(house, "r")
    await house.http.post("/v1/requests/r/suspend")
    await house.http.post("/v1/requests/r/resume")
    await ended(house, "r")
    for query, expected in (("", answer(300)), ("?from=290", answer(300)[290:]), ("?from=9999", "")):
        stream = (await house.http.get(f"/v1/requests/r/stream{query}")).text
        assert texts(stream) == [expected]
        assert [piece["finish_reason"] for piece in pieces(stream)] == ["length"]


@pytest.mark.parametrize("query", ["from=x", "from=-1", "from=1,2", "from=", "from=1.5", "form=1", "from=²"])
async def test_a_wrong_start_is_refused(house: House, query: str) -> None:
    call = await half_done(house, "r")
    await house.http.post("/v1/requests/r/suspend")
    assert (await house.http.get(f"/v1/requests/r/stream?{query}")).status_code == 400
    await house.http.delete("/v1/requests/r")
    await call


async def test_a_reader_that_leaves_changes_nothing_and_a_cancelled_request_ends_its_readers(house: House) -> None:
    await half_done(house, "r")
    await house.http.post("/v1/requests/r/hibernate")
    with pytest.raises(httpx.ReadTimeout):
        await house.http.get("/v1/requests/r/stream", timeout=httpx.Timeout(60, read=0.1))
    assert (await show(house, "r"))["state"] == "suspended"
    await house.until(lambda: len(watching()) == 1)
    reading = asyncio.create_task(house.http.get("/v1/requests/r/stream"))
    await house.until(lambda: len(watching()) == 2)
    await house.http.delete("/v1/requests/r")
    assert '"code":"request_cancelled"' in (await reading).text


# ---------------------------------------------------------------- down and up


async def test_hibernated_requests_go_on_in_the_next_daemon(tmp_path: Path) -> None:
    async with open_house(home=tmp_path / "a") as house:
        calls = [await half_done(house, "one", user="ann", priority=3), await half_done(house, "two", n=2)]
        calls.append(ask(house, "waits", n=4))
        await house.until(lambda: house.service.roster.is_live("waits"))
        await house.http.patch("/v1/requests/two", json={"priority": -4})
        rows = (await house.http.post("/v1/hibernate")).json()["data"]
        assert {row["id"]: row["state"] for row in rows} == dict.fromkeys(("one", "two", "waits"), "suspended")
        with killed(tmp_path / "a", tmp_path / "b") as left:
            before = {row["id"]: row for row in rows}
            house.clock.advance(5_000_000_000)
        for call in calls:
            call.cancel()
    async with open_house(home=left) as house:
        assert {view.id: (view.state, view.completion_tokens) for view in house.restored} == {
            id: (State.SUSPENDED, row["completion_tokens"]) for id, row in before.items()
        }
        for id, row in before.items():
            shown = await show(house, id)
            for name in ("user", "nice", "n", "max_tokens", "created_at", "prompt_tokens"):
                assert shown[name] == row[name]
        finals = [await ended(house, id) for id in before]
        told = [note.text for note in house.notes if note.kind == "request.restored"]
        assert house.value("vllm:time_to_first_token_seconds_count") == 1, "the others had their first token before"
        assert house.value("vllm:request_success_total", finished_reason="length") == 1 + 2 + 4
        assert len(told) == 3 and not any(note.kind == "request.accepted" for note in house.notes)
    for final in finals:
        assert [choice["text"] for choice in final["choices"]] == [answer(300, c) for c in range(final["n"])]
        parts = [final[f"{part}_ms"] for part in ("queued", "prefill", "decode", "preempted", "other")]
        assert sum(parts) == pytest.approx(final["total_ms"])
        row = before[final["id"]]
        assert final["prefill_ms"] >= row["prefill_ms"] and final["decode_ms"] > row["decode_ms"]
        if row["ttft_ms"] is not None:
            assert final["ttft_ms"] == pytest.approx(row["ttft_ms"])


async def test_a_stopped_daemon_leaves_images_and_tells_waiting_clients(tmp_path: Path) -> None:
    async with open_house(home=tmp_path) as house:
        call = await half_done(house, "r")
        await house.http.post("/v1/requests/r/hibernate")
        house.service.phase = house.service.phase.DRAINING
        await asyncio.wait_for(house.service.roster.idle(), 60)  # it does not hold up the end
        house.service.stop()
        assert "the next one takes up request r" in (await call).json()["error"]["message"]
    async with open_house(home=tmp_path) as house:
        assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)


async def test_a_suspended_request_stands_still_in_the_next_daemon_too(tmp_path: Path) -> None:
    async with open_house(home=tmp_path) as house:
        call = await half_done(house, "r")
        await house.http.post("/v1/requests/r/suspend")
        await house.hibernation.keep_suspended()
        house.service.stop()
        await call
    async with open_house(home=tmp_path) as house:
        assert (await show(house, "r"))["state"] == "suspended"
        await asyncio.wait_for(house.service.roster.idle(), 60)
        await house.http.post("/v1/requests/r/resume")
        assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)


async def test_an_image_lives_as_long_as_its_request(tmp_path: Path) -> None:
    files = ImageDirectory(tmp_path / "hibernated")
    async with open_house(home=tmp_path) as house:
        for id in ("cancelled", "finished"):
            call = await half_done(house, id)
            await house.http.post(f"/v1/requests/{id}/hibernate")
            await house.http.post(f"/v1/requests/{id}/hibernate")  # once more changes nothing
            assert files.image(id).exists()
            if id == "cancelled":
                await house.http.delete(f"/v1/requests/{id}")
            else:
                await house.http.post(f"/v1/requests/{id}/resume")
            house.executor.pause_s = 0
            await call
            await house.until(lambda id=id: not files.image(id).exists())
            await house.hibernation.settled()
            assert files.answer(id).exists() == (id == "finished")


async def test_an_answer_waits_for_whoever_comes_even_in_the_next_daemon(tmp_path: Path) -> None:
    answers = ImageDirectory(tmp_path / "hibernated")
    async with open_house(home=tmp_path) as house:
        for id in ("shown", "streamed"):
            call = await half_done(house, id)
            await house.http.post(f"/v1/requests/{id}/hibernate")
            await leave(house, call)
            await house.http.post(f"/v1/requests/{id}/resume")
        house.executor.pause_s = 0
        await house.service.roster.idle()
    async with open_house(home=tmp_path) as house:
        assert {row["id"]: row["state"] for row in (await house.http.get("/v1/requests")).json()["data"]} == {
            "shown": "finished",
            "streamed": "finished",
        }
        assert answers.answer("shown").exists() and answers.answer("streamed").exists()
        for _ in range(2):
            assert (await show(house, "shown"))["choices"][0]["text"] == answer(300)
            assert texts((await house.http.get("/v1/requests/streamed/stream?from=100")).text) == [answer(300)[100:]]
    async with open_house(home=tmp_path) as house:
        assert (await house.http.get("/v1/requests/shown")).status_code == 404
        assert list((tmp_path / "hibernated").iterdir()) == []


async def test_a_full_disk_hibernates_nothing_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_house(home=tmp_path) as house:
        calls = [await half_done(house, "runs"), await half_done(house, "stands")]
        await house.http.post("/v1/requests/stands/suspend")

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            refused = await house.http.post("/v1/hibernate")
        assert refused.status_code == 500 and "No space left" in refused.json()["error"]["message"]
        assert list((tmp_path / "hibernated").iterdir()) == []
        assert (await show(house, "stands"))["state"] == "suspended"
        await leave(house, calls[0])  # it is as mortal as before
        assert (await ended(house, "runs"))["state"] == "cancelled"
        calls[1].cancel()


async def test_hibernating_who_is_not_there(house: House) -> None:
    assert (await house.http.post("/v1/requests/nobody/hibernate")).status_code == 404
    assert (await house.http.post("/v1/hibernate")).json()["data"] == []
    assert (await house.http.post("/v1/hibernate", content=b'{"ids": []}')).status_code == 400


# ---------------------------------------------------------------- images that cannot be served


async def image_of(home: Path, **fields: Any) -> Image:
    """Of a half-done request, in this home and nowhere else."""
    async with open_house(home=home) as house:
        call = await half_done(house, "r", **fields)
        await house.http.post("/v1/requests/r/hibernate")
        with killed(home, home.with_name("left")):
            call.cancel()
    shutil.rmtree(home)
    home.with_name("left").rename(home)
    return ImageDirectory(home / "hibernated").open().images[0]


async def test_a_crash_long_after_it_was_resumed_costs_time_and_no_text(tmp_path: Path) -> None:
    """The image is that of its hibernation: what came after is computed again, and reads the same from any place on."""
    home, left = tmp_path / "home", tmp_path / "left"
    async with open_house(home=home) as house:
        call = await half_done(house, "r")
        await house.http.post("/v1/requests/r/hibernate")
        old = (await show(house, "r"))["completion_tokens"]
        await house.http.post("/v1/requests/r/resume")
        await house.until(lambda: sum(len(output.tokens) for output in outputs(house, "r")) >= old + 30)
        said = answer(old + 30)
        with killed(home, left):
            call.cancel()
    async with open_house(home=left) as house:
        stream = await house.http.get(f"/v1/requests/r/stream?from={len(said)}")
        assert said + texts(stream.text)[0] == answer(300)
        assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)


async def test_unreadable_images_are_put_aside_and_stop_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    sound = image.encode(await image_of(home))
    files = ImageDirectory(home / "hibernated")
    files.image("cut").write_bytes(sound[:-5])
    files.image("flipped").write_bytes(sound[:70] + bytes([sound[70] ^ 1]) + sound[71:])
    async with open_house(home=home) as house:
        assert [view.id for view in house.restored] == ["r"]
        notes = [note for note in house.notes if note.severity == "error"]
        assert {note.kind for note in notes} == {"request.bad_image"}
        assert sorted(note.text.split()[0] for note in notes) == ["cut.image", "flipped.image"]
        assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)
    left = sorted(path.name for path in (home / "hibernated").iterdir())
    assert left == ["cut.image.bad", "flipped.image.bad", "r.answer"] or left == ["cut.image.bad", "flipped.image.bad"]


@pytest.mark.parametrize(
    ("served", "name", "words"),
    [
        (replace(NUMERICS, files={"source.gguf": "1" * 64}), "r.image.bad", "has other files"),
        (replace(NUMERICS, model="numbers"), "r.image", "the model 'letters' is not installed here"),
    ],
)
async def test_an_image_of_another_model(tmp_path: Path, served: Any, name: str, words: str) -> None:
    home = tmp_path / "home"
    await image_of(home)
    async with open_house(home=home, numerics=served) as house:
        assert house.restored == []
        assert [words in note.text for note in house.notes] == [True]
        assert (await house.http.post(COMPLETIONS, json=body(max_tokens=3) | {"model": served.model})).json()[
            "choices"
        ][0]["text"] == "abc"
    assert [path.name for path in (home / "hibernated").iterdir()] == [name]


async def test_an_image_that_the_limits_do_not_admit_waits_for_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await image_of(home)
    async with open_house(home=home, limits=replace(LIMITS, context=100)) as house:
        assert house.restored == []
        assert ["context holds 100 tokens" in note.text for note in house.notes] == [True]
    async with open_house(home=home) as house:
        assert (await ended(house, "r"))["choices"][0]["text"] == answer(300)


async def test_other_numerics_are_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await image_of(home)
    async with open_house(home=home, numerics=replace(NUMERICS, kv_format="int8")) as house:
        [note] = [note for note in house.notes if note.kind == "request.numerics"]
        assert "kv_format=float16" in note.text and note.request == "r"


# ---------------------------------------------------------------- transcripts


def said(text: str, finish: FinishReason | None = None, choice: int = 0) -> Output:
    return Output("r", choice, (), text, 0, finish=finish)


@pytest.mark.parametrize("skip", range(9))
async def test_every_reader_gets_what_it_lacks(skip: int) -> None:
    transcript = Transcript(["ab"])
    got: list[str] = []

    async def read() -> None:
        async for came in transcript.follow([skip]):
            got.extend(piece.text for piece in came)

    reading = asyncio.create_task(read())
    for text in ("c", "", "de", "f"):
        await asyncio.sleep(0)
        transcript.add(said(text))
    transcript.add(said("g", FinishReason.STOP))
    transcript.end(None)
    await reading
    assert "".join(got) == "abcdefg"[skip:]
    assert not transcript._readers


def test_the_memory_for_ended_transcripts_is_bounded() -> None:
    kept = Transcripts(limit=10)
    for id in "abc":
        kept.add(id, Transcript(["1234"]))
    assert [kept.get(id) is not None for id in "abc"] == [False, True, True]
    kept.add("large", Transcript(["x" * 11]))
    assert kept.get("large") is None and kept.get("c") is None
    kept.forget("nobody")
