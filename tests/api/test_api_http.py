"""The protocol below OpenAI's client: ids, errors, back-pressure, cancellation, the request table."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from api_house import LIMITS, MODEL, PACE_S, House, open_house

from llmosd.application.http.decode import MAX_BODY
from llmosd.application.roster import HISTORY
from llmosd.application.service import Phase
from llmosd.errors import NotFound, Unavailable
from llmosd.types import RequestSpec, RequestView, Sampling, State

COMPLETIONS = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hello", "max_tokens": 4, **fields}


def endless(**fields: Any) -> dict[str, Any]:
    return body(max_tokens=500, **fields)


async def occupy(house: House, count: int) -> list[asyncio.Task[httpx.Response]]:
    """That many long requests, each accepted before the next is sent."""
    house.executor.pause_s = PACE_S
    tasks = []
    for number in range(1, count + 1):
        tasks.append(asyncio.create_task(house.http.post(COMPLETIONS, json=endless())))
        await house.until(lambda number=number: len(house.executor.started) + _waiting(house) == number)
    return tasks


def _waiting(house: House) -> int:
    return house.service.stats.waiting if house.service.stats else 0


async def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]
    assert response.headers["x-request-id"]
    return error


async def test_health_follows_the_daemons_phase(house: House) -> None:
    assert (await house.http.get("/health")).json() == {"status": "ok"}
    for phase in (Phase.STARTING, Phase.DRAINING):
        house.service.phase = phase
        assert (await error_of(await house.http.get("/health"), 503))["code"] == "unavailable"
        refused = await error_of(await house.http.post(COMPLETIONS, json=body()), 503)
        assert phase in refused["message"]


async def test_health_tells_of_a_dead_engine(house: House) -> None:
    house.executor.execute = None  # type: ignore[method-assign,assignment]
    await house.http.post(COMPLETIONS, json=body())
    await house.until(lambda: house.service.failure is not None)
    await error_of(await house.http.get("/health"), 503)
    await error_of(await house.http.post(COMPLETIONS, json=body()), 503)


async def test_status_is_the_daemons(house: House) -> None:
    assert (await house.http.get("/v1/status")).json() == {"state": "serving", "model": MODEL}


async def test_unknown_paths_and_methods_have_the_same_shape(house: House) -> None:
    assert (await error_of(await house.http.get("/v2/x"), 404))["code"] == "not_found"
    assert (await error_of(await house.http.get(COMPLETIONS), 405))["code"] == "method_not_allowed"
    wrong = await house.http.put("/v1/requests/x")
    assert (await error_of(wrong, 405)) and set(wrong.headers["allow"].split(", ")) >= {"GET", "DELETE", "PATCH"}


async def test_bad_json_is_named(house: House) -> None:
    error = await error_of(await house.http.post(COMPLETIONS, content=b'{"model": '), 400)
    assert "not valid JSON" in error["message"]


async def test_a_large_body_is_refused_declared_or_not(house: House) -> None:
    async def chunks() -> Any:
        for _ in range(MAX_BODY // 2**20 + 1):
            yield b" " * 2**20

    declared = await house.http.post(COMPLETIONS, content=b" " * (MAX_BODY + 1))
    assert (await error_of(declared, 413))["code"] == "body_too_large"
    await error_of(await house.http.post(COMPLETIONS, content=chunks()), 413)


async def test_an_empty_prompt_and_too_many_choices_are_refused(house: House) -> None:
    assert (await error_of(await house.http.post(COMPLETIONS, json=body(prompt="")), 400))["param"] == "prompt"
    assert (await error_of(await house.http.post(COMPLETIONS, json=body(n=5)), 400))["param"] == "n"
    wrong = await house.http.post(COMPLETIONS, json=body(prompt=[1, 258]))
    assert (await error_of(wrong, 400))["param"] == "prompt"


async def test_a_client_that_leaves_while_it_sends_is_no_defect(house: House, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await house.http.get("/health")).status_code == 200
    assert not caplog.records


# ---------------------------------------------------------------- request ids


async def test_a_sane_request_id_is_taken_and_echoed(house: House) -> None:
    answer = await house.http.post(COMPLETIONS, json=body(), headers={"X-Request-Id": "my.id_1-2"})
    assert answer.headers["x-request-id"] == "my.id_1-2" and answer.json()["id"] == "cmpl-my.id_1-2"
    assert (await house.http.get("/v1/requests/my.id_1-2")).json()["id"] == "my.id_1-2"
    assert (await house.http.get("/v1/requests/cmpl-my.id_1-2")).json()["id"] == "my.id_1-2"


@pytest.mark.parametrize("wanted", ["x" * 65, "a b", "a/b", "", "é".encode()])
async def test_any_other_request_id_is_replaced(house: House, wanted: Any) -> None:
    answer = await house.http.get("/nowhere", headers={"X-Request-Id": wanted})
    await error_of(answer, 404)
    assert answer.headers["x-request-id"] != wanted and len(answer.headers["x-request-id"]) == 32


async def test_a_request_id_serves_once(house: House) -> None:
    ids = [
        (await house.http.post(COMPLETIONS, json=body(), headers={"X-Request-Id": "one"})).headers["x-request-id"]
        for _ in range(2)
    ]
    assert ids[0] == "one" and ids[1] != "one"


async def test_each_prompt_is_a_request(house: House) -> None:
    await house.http.post(COMPLETIONS, json=body(prompt=["a", "b"]), headers={"X-Request-Id": "two"})
    assert sorted(view.id for view in house.recorded) == ["two", "two-1"]


# ---------------------------------------------------------------- web pages


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "192.168.1.1:80"])
async def test_a_foreign_host_is_refused(house: House, host: str) -> None:
    assert (await error_of(await house.http.get("/health", headers={"Host": host}), 403))["code"] == "forbidden"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:11500", "llm.localhost"])
async def test_names_of_loopback_are_served(house: House, host: str) -> None:
    assert (await house.http.get("/health", headers={"Host": host})).status_code == 200


async def test_pages_of_other_origins_are_refused(house: House) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        await error_of(await house.http.post(COMPLETIONS, json=body(), headers={"Origin": origin}), 403)
    preflight = await house.http.options(COMPLETIONS, headers={"Origin": "https://evil.example"})
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    own = await house.http.post(COMPLETIONS, json=body(), headers={"Origin": house.url})
    assert own.status_code == 200
    assert len(house.recorded) == 1


# ---------------------------------------------------------------- durability


async def test_a_request_is_recorded_before_it_is_answered(house: House) -> None:
    allowed = asyncio.Event()

    async def record(view: RequestView) -> None:
        await allowed.wait()
        house.recorded.append(view)

    house.service._on_accept = record
    answer = asyncio.create_task(house.http.post(COMPLETIONS, json=body()))
    await house.until(lambda: house.service.stats is not None and house.service.stats.finished == 1)
    assert not answer.done()
    allowed.set()
    assert (await answer).json()["choices"][0]["text"] == "abcd"
    assert len(house.recorded) == 1


async def test_what_cannot_be_recorded_is_not_served(house: House) -> None:
    async def fail(view: RequestView) -> None:
        raise Unavailable("the disk is full")

    house.service._on_accept = fail
    house.executor.pause_s = PACE_S
    await error_of(await house.http.post(COMPLETIONS, json=endless()), 503)
    await house.until(lambda: house.service.stats is not None and house.service.stats.cancelled == 1)
    await house.service.roster.idle()


async def test_a_stop_tells_those_who_wait_that_they_may_ask_again(house: House) -> None:
    house.executor.pause_s = PACE_S
    whole = asyncio.create_task(house.http.post(COMPLETIONS, json=endless()))
    streamed = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(stream=True)))
    await house.until(lambda: len(house.executor.started) == 2)
    house.service.stop()
    error = await error_of(await whole, 503)
    assert error["code"] == "unavailable" and "stopped" in error["message"]
    assert json.loads((await streamed).text.split("data: ")[-1])["error"]["code"] == "unavailable"
    await error_of(await house.http.post(COMPLETIONS, json=body()), 503)


# ---------------------------------------------------------------- the queue is full


async def test_a_full_queue_says_when_to_come_back(house: House) -> None:
    tasks = await occupy(house, 7)
    refused = await house.http.post(COMPLETIONS, json=body())
    assert (await error_of(refused, 429))["code"] == "queue_full"
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    house.executor.pause_s = 0
    answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {200}


async def test_several_prompts_are_accepted_together_or_not_at_all(house: House) -> None:
    house.executor.pause_s = PACE_S
    await error_of(await house.http.post(COMPLETIONS, json=endless(prompt=["x"] * 9)), 429)
    await house.service.roster.idle()
    stats = house.service.stats
    assert stats is not None and stats.cancelled == stats.accepted > 0 and stats.pages_used == 0


# ---------------------------------------------------------------- cancellation


async def ended(house: House, state: State) -> RequestView:
    await house.until(lambda: any(view.state is state for view in house.service.roster._ended.values()))
    await house.service.roster.idle()
    assert house.service.stats is not None and house.service.stats.pages_used == 0
    return next(iter(house.service.roster._ended.values()))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_request(house: House, stream: bool) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(stream=stream, n=2)))
    await house.until(lambda: bool(house.executor.started))
    call.cancel()
    view = await ended(house, State.CANCELLED)
    assert view.completion_tokens < 2 * 500
    await house.until(lambda: not {"disconnect watch", "keep-alive"} & {t.get_name() for t in asyncio.all_tasks()})


async def test_a_queued_client_that_leaves_frees_its_place(house: House) -> None:
    running = await occupy(house, 4)
    queued = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(stream=True)))
    await house.until(lambda: len(house.recorded) == 5)
    queued.cancel()
    await house.until(lambda: bool(house.service.roster._ended))
    (view,) = house.service.roster._ended.values()
    assert view.state is State.CANCELLED and view.completion_tokens == 0
    house.executor.pause_s = 0
    await asyncio.gather(*running)


async def test_deleting_a_request_tells_who_waits_for_it(house: House) -> None:
    house.executor.pause_s = PACE_S
    whole = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(), headers={"X-Request-Id": "w"}))
    streamed = asyncio.create_task(
        house.http.post(COMPLETIONS, json=endless(stream=True), headers={"X-Request-Id": "s"})
    )
    await house.until(lambda: len(house.executor.started) == 2)
    for id in ("w", "s"):
        assert (await house.http.delete(f"/v1/requests/{id}")).json()["state"] == "cancelled"
    assert (await error_of(await whole, 499))["code"] == "request_cancelled"
    *_, last = (await streamed).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_cancelled"
    assert "already ended" in (await error_of(await house.http.delete("/v1/requests/w"), 404))["message"]


# ---------------------------------------------------------------- the request table


async def test_the_request_table(house: House) -> None:
    house.executor.pause_s = PACE_S
    await house.http.post(COMPLETIONS, json=body(user="ann", priority=3))
    call = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(user="bob")))
    await house.until(lambda: len(house.executor.started) == 2)
    rows = (await house.http.get("/v1/requests")).json()["data"]
    assert [(row["user"], row["state"]) for row in rows] == [("bob", "decode"), ("ann", "finished")]
    ann = rows[1]
    assert (ann["nice"], ann["prompt_tokens"], ann["completion_tokens"], ann["finish"]) == (3, 5, 4, "length")
    parts = sum(ann[f"{part}_ms"] for part in ("queued", "prefill", "decode", "preempted", "other"))
    assert parts == pytest.approx(ann["total_ms"]) and ann["ttft_ms"] == 6 and ann["total_ms"] == 15
    for query, users in (("user=ann", ["ann"]), ("state=decode", ["bob"]), ("user=ann&state=decode", [])):
        found = (await house.http.get(f"/v1/requests?{query}")).json()["data"]
        assert [row["user"] for row in found] == users
    assert (await error_of(await house.http.get("/v1/requests?state=x"), 400))["param"] == "state"
    assert (await error_of(await house.http.get("/v1/requests?sate=x"), 400))["param"] == "sate"
    await error_of(await house.http.get("/v1/requests/nobody"), 404)
    house.executor.pause_s = 0
    await call


async def test_renice(house: House) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(), headers={"X-Request-Id": "r"}))
    await house.until(lambda: bool(house.executor.started))
    changed = await house.http.patch("/v1/requests/r", json={"priority": -5})
    assert changed.json()["nice"] == -5
    assert (await error_of(await house.http.patch("/v1/requests/r", json={"priority": 20}), 400))["param"] == "priority"
    house.executor.pause_s = 0
    await call
    await error_of(await house.http.patch("/v1/requests/r", json={"priority": 1}), 404)
    await error_of(await house.http.patch("/v1/requests/nobody", json={"priority": 1}), 404)


async def test_suspend_and_resume(house: House) -> None:
    house.executor.pause_s = PACE_S
    call = asyncio.create_task(house.http.post(COMPLETIONS, json=endless(), headers={"X-Request-Id": "r"}))
    await house.until(lambda: bool(house.executor.started))
    suspended = (await house.http.post("/v1/requests/r/suspend")).json()
    assert (suspended["state"], suspended["pages"]) == ("suspended", 0)
    await asyncio.sleep(0.05)
    done = suspended["completion_tokens"]
    assert (await house.http.get("/v1/requests/r")).json()["completion_tokens"] == done
    assert (await house.http.post("/v1/requests/r/resume")).json()["state"] == "preempted"
    assert house.value("llmos_preemptions_total", reason="a person") == 0, "nobody took its pages"
    house.executor.pause_s = 0
    assert (await call).json()["usage"]["completion_tokens"] > done
    for action in ("suspend", "resume"):
        await error_of(await house.http.post(f"/v1/requests/r/{action}"), 404)
        await error_of(await house.http.get(f"/v1/requests/r/{action}"), 405)


async def test_history_is_bounded() -> None:
    async with open_house(limits=replace(LIMITS, queue_limit=2000)) as house:
        specs = [RequestSpec(f"r{n}", MODEL, (1,), Sampling(max_tokens=1)) for n in range(HISTORY + 5)]
        await asyncio.gather(*map(house.service.submit, specs))
        await house.service.roster.idle()
        assert len(await house.service.requests()) == HISTORY
        with pytest.raises(NotFound):
            await house.service.get("r0")


async def test_labels_only_where_prompts_may_be_logged() -> None:
    async with open_house(log_prompts=True) as house:
        messages = [{"role": "user", "content": "tell\n me\x1b[2J " + "x" * 99}]
        await house.http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 1})
        assert house.recorded[0].label == ("tell me[2J " + "x" * 99)[:60]
