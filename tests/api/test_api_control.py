"""Process control over HTTP and on the command line: filters, waiting, rights, read-only mode, sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from api_house import MODEL, PACE_S, House, open_house

from llmosd.application import keys
from llmosd.application.cli import main
from llmosd.application.client import KEY, AsyncClient, Client
from llmosd.application.http.sse import EventStream
from llmosd.application.keys import Key, Right
from llmosd.errors import Forbidden, InvalidRequest, Unauthorized
from llmosd.types import State

COMPLETIONS, CONTROL = "/v1/completions", "/v1/control"
CALLERS = {"ann": Right.OWN, "bob": Right.OWN, "eve": Right.READ, "root": Right.ADMIN}
Tasks = list[asyncio.Task[httpx.Response]]


async def begin(house: House, id: str, key: str = "", **fields: Any) -> asyncio.Task[httpx.Response]:
    """A long request, once it is accepted."""
    house.executor.pause_s = PACE_S
    body = {"model": MODEL, "prompt": f"the secret of {id}", "max_tokens": 480, **fields}
    headers = {"X-Request-Id": id, **bearer(key)}
    task = asyncio.create_task(house.http.post(COMPLETIONS, json=body, headers=headers))
    await house.until(lambda: any(view.id == id for view in house.recorded) or task.done())
    return task


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def control(house: House, command: str, key: str = "", **fields: Any) -> httpx.Response:
    return await house.http.post(CONTROL, json={"command": command, **fields}, headers=bearer(key))


async def table(house: House) -> dict[str, tuple[str, int]]:
    """State and nice value of all live requests."""
    views = (await house.service.inspect()).requests
    return {view.id: ("live" if view.state is not State.SUSPENDED else view.state, view.nice) for view in views}


def ids(response: httpx.Response) -> set[str]:
    assert response.status_code == 200, response.text
    return {row["id"] for row in response.json()["data"]}


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]
    return error


@asynccontextmanager
async def ended(house: House, tasks: Tasks) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await house.service.roster.idle()


async def cli(house: House, *args: str) -> int:
    host, port = house.url.removeprefix("http://").split(":")
    return await asyncio.to_thread(main, [*args, "--host", host, "--port", port])


# ---------------------------------------------------------------- filters


async def test_one_command_by_user_session_state_model_and_class(house: House) -> None:
    tasks = [await begin(house, "a1", user="ann", metadata={"session": "chat"})]
    tasks += [await begin(house, "a2", user="ann"), await begin(house, "b1", user="bob")]
    async with ended(house, tasks):
        assert ids(await control(house, "ps", session="chat")) == {"a1"}
        assert ids(await control(house, "nice", user="ann", nice=7)) == {"a1", "a2"}
        assert await table(house) == {"a1": ("live", 7), "a2": ("live", 7), "b1": ("live", 0)}
        assert ids(await control(house, "suspend", model=MODEL)) == {"a1", "a2", "b1"}
        assert ids(await control(house, "resume", state="suspended", user="bob")) == {"b1"}
        assert await table(house) == {"a1": ("suspended", 7), "a2": ("suspended", 7), "b1": ("live", 0)}
        assert ids(await control(house, "kill", **{"class": "batch"})) == set()
        assert ids(await control(house, "kill", ids=["a2", "b1", "a2"])) == {"a2", "b1"}
        assert await table(house) == {"a1": ("suspended", 7)}
        assert ids(await house.http.get("/v1/requests?state=cancelled&class=interactive")) == {"a2", "b1"}


async def test_what_is_meant_is_checked_before_anything_changes(house: House) -> None:
    tasks = [await begin(house, "a", user="ann")]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"command": "nice", "user": "ann", "nice": 20}, "nice"),
        ({"command": "nice", "user": "ann", "nice": -21}, "nice"),
        ({"command": "nice", "user": "ann"}, "nice"),
        ({"command": "kill", "user": "ann", "nice": 3}, "nice"),
        ({"command": "kill"}, "ids"),
        ({"command": "kill", "ids": ["a"], "user": "ann"}, "ids"),
        ({"command": "kill", "state": "asleep"}, "state"),
        ({"command": "kill", "class": "first"}, "class"),
        ({"command": "kill", "usr": "ann"}, "usr"),
        ({"command": "kill", "ids": ["a"], "key": "k"}, "key"),
        ({"command": "stop", "ids": ["a"]}, "command"),
        ({"command": "policy"}, "policy"),
        ({"command": "policy", "policy": "random"}, "policy"),
        ({"command": "policy", "policy": "fair", "ids": ["a"]}, "ids"),
        ({"command": "kill", "policy": "fair", "ids": ["a"]}, "policy"),
        ({"command": "wait", "ids": ["a"], "timeout_s": -1}, "timeout_s"),
        ({"command": "wait", "ids": ["a"], "timeout_s": 1e9}, "timeout_s"),
    ]
    async with ended(house, tasks):
        for body, param in wrong:
            error = refusal(await house.http.post(CONTROL, json=body), 400)
            assert error["param"] == param, body
        assert "nobody" in refusal(await control(house, "kill", ids=["a", "nobody"]), 404)["message"]
        assert await table(house) == {"a": ("live", 0)}


async def test_another_policy_by_command(house: House) -> None:
    assert ids(await control(house, "policy", policy="fair")) == set()
    assert (await house.http.get("/v1/policy")).json()["policy"] == "fair"


async def test_wait_returns_when_the_last_one_has_ended(house: House) -> None:
    tasks = [await begin(house, id, user="ann") for id in ("a", "b")]
    async with ended(house, tasks):
        early = await control(house, "wait", user="ann", timeout_s=0)
        assert {row["state"] for row in early.json()["data"]} <= {"prefill", "decode", "queued"}
        waiting = asyncio.create_task(control(house, "wait", ids=["a", "b"]))
        await control(house, "kill", ids=["a"])
        assert not waiting.done()
        await control(house, "kill", ids=["b"])
        assert {row["id"]: row["state"] for row in (await waiting).json()["data"]} == dict.fromkeys("ab", "cancelled")
        assert ids(await control(house, "wait", ids=["a"])) == {"a"}
        assert ids(await control(house, "wait", user="ann")) == set()
        assert "nobody" in refusal(await control(house, "wait", ids=["nobody"]), 404)["message"]


# ---------------------------------------------------------------- sessions


async def test_a_session_is_named_by_the_body_else_by_a_header_else_it_is_the_request(house: House) -> None:
    async def session_of(id: str, **fields: Any) -> str:
        headers = {"X-Request-Id": id, "X-Session-Id": "from-header"} if fields.pop("header", True) else {}
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1, **fields}
        answer = await house.http.post(COMPLETIONS, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        row = (await house.http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()
        return "itself" if row["session"] == row["id"] else str(row["session"])

    assert await session_of("one", metadata={"session": "from-body"}) == "from-body"
    assert await session_of("two", metadata={}) == "from-header"
    assert await session_of("three", header=False) == "itself"


@pytest.mark.parametrize("metadata", [{"session": "a\nb"}, {"session": "x" * 257}, {"topic": "x"}, {"session": 3}])
async def test_a_session_that_cannot_be_is_refused(house: House, metadata: Any) -> None:
    body = {"model": MODEL, "prompt": "x", "metadata": metadata}
    assert refusal(await house.http.post(COMPLETIONS, json=body), 400)["param"].startswith("metadata")
    assert not house.recorded


async def test_prompts_of_one_body_are_one_session(house: House) -> None:
    await house.http.post(COMPLETIONS, json={"model": MODEL, "prompt": ["a", "b"], "max_tokens": 1})
    first, second = house.recorded
    assert first.session == second.session


# ---------------------------------------------------------------- the command line


async def test_the_command_line_by_filter_and_by_the_beginning_of_ids(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [await begin(house, "first-1", user="ann", metadata={"session": "chat"})]
    tasks += [await begin(house, "first-2", user="ann", metadata={"session": "chat"})]
    tasks += [await begin(house, "second", user="bob")]
    async with ended(house, tasks):
        assert await cli(house, "ps") == 0
        lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
        assert lines == ["bob", "second", "ann", "chat", "first-2", "first-1"]
        assert await cli(house, "ps", "--user", "bob", "--json") == 0
        assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["second"]
        assert await cli(house, "nice", "-5", "--session", "chat") == 0
        assert capsys.readouterr().out.splitlines() == ["first-1 nice -5", "first-2 nice -5"]
        assert await cli(house, "suspend", "sec") == 0
        assert await cli(house, "resume", "--state", "suspended") == 0
        assert await cli(house, "kill", "--user", "ann") == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "second suspended" and out[1].startswith("second ")
        assert set(out[2:]) == {"first-1 cancelled", "first-2 cancelled"}
        waiting = asyncio.create_task(cli(house, "wait", "second"))
        assert await cli(house, "kill", "second") == 0
        assert await waiting == 1, "it did not finish"
        assert await cli(house, "wait", "second") == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nice", "25", "a"], 2, "nice must be -20 to 19, not 25"),
        (["kill"], 2, "say which requests are meant"),
        (["kill", "a", "--user", "ann"], 2, "not both"),
        (["kill", "--user", "nobody"], 2, "no live request"),
        (["kill", "--state", "asleep"], 2, "state must be one of"),
        (["suspend", "zz"], 2, "zz"),
        (["wait", "--user", "ann", "--timeout", "0"], 1, "1 have not ended"),
    ],
)
async def test_the_command_line_says_what_was_wrong(
    house: House, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str
) -> None:
    tasks = [await begin(house, "a", user="ann")]
    async with ended(house, tasks):
        assert await cli(house, *args) == code
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert await table(house) == {"a": ("live", 0)}


# ---------------------------------------------------------------- keys


@asynccontextmanager
async def house_with_keys(tmp_path: Path, **options: Any) -> AsyncIterator[House]:
    """Whose callers' keys are their names."""
    keys.write(tmp_path, [Key(keys.digest_of(name), name, right) for name, right in CALLERS.items()])
    async with open_house(home=tmp_path, log_prompts=True, **options) as house:
        yield house


async def test_without_a_known_key_nothing_is_answered_but_health(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path) as house:
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic ann"}):
            for path in ("/v1/models", "/v1/requests", "/metrics", "/v1/status", "/nowhere"):
                answer = await house.http.get(path, headers=headers)
                assert refusal(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            refusal(await house.http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}, headers=headers), 401)
            assert (await house.http.get("/health", headers=headers)).status_code == 200
        assert not house.recorded


async def test_the_user_is_the_keys_and_the_bodys_a_label(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path) as house:
        tasks = [await begin(house, "a", "ann", user="root")]
        async with ended(house, tasks):
            [view] = house.recorded
            assert (view.user, view.label) == ("ann", "[root] the secret of a")


async def test_who_may_only_read_sees_that_requests_are_there_and_changes_nothing(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path) as house:
        tasks = [await begin(house, "a", "ann")]
        async with ended(house, tasks):
            [row] = (await house.http.get("/v1/requests", headers=bearer("eve"))).json()["data"]
            assert (row["id"], row["user"], row["label"]) == ("a", "ann", "")
            for path in ("/metrics", "/v1/memory", "/v1/models", "/v1/status"):
                assert (await house.http.get(path, headers=bearer("eve"))).status_code == 200
            refusal(
                await house.http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}, headers=bearer("eve")), 403
            )
            for command in ("kill", "suspend", "resume"):
                refusal(await control(house, command, "eve", ids=["a"]), 403)
            assert await table(house) == {"a": ("live", 0)}


async def test_another_users_request_is_neither_controlled_nor_read(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path) as house:
        tasks = [await begin(house, "a", "ann"), await begin(house, "b", "bob")]
        async with ended(house, tasks):
            await control(house, "suspend", "ann", ids=["a"])  # from now on its text is open to those who may read it
            before = await table(house)
            for answer in [
                await control(house, "kill", "bob", ids=["b", "a"]),
                await control(house, "nice", "bob", user="ann", nice=19),
                await control(house, "resume", "bob", ids=["a"]),
                await house.http.delete("/v1/requests/a", headers=bearer("bob")),
                await house.http.patch("/v1/requests/a", json={"priority": 5}, headers=bearer("bob")),
                await house.http.post("/v1/requests/a/resume", headers=bearer("bob")),
                await house.http.post("/v1/requests/a/hibernate", headers=bearer("bob")),
                await house.http.post("/v1/hibernate", headers=bearer("bob")),
                await house.http.get("/v1/requests/a/stream", headers=bearer("bob")),
                await house.http.put("/v1/policy", json={"policy": "fair"}, headers=bearer("bob")),
                await control(house, "policy", "bob", policy="fair"),
            ]:
                error = refusal(answer, 403)
                assert (error["code"], error["type"]) == ("forbidden", "permission_error")
                assert "secret" not in answer.text
            assert await table(house) == before
            for caller, open_to in (("bob", False), ("eve", False), ("ann", True), ("root", True)):
                found = (await house.http.get("/v1/requests/a", headers=bearer(caller))).json()
                assert (found["choices"] is not None, found["label"] != "") == (open_to, open_to)
            assert ids(await control(house, "resume", "bob", state="suspended")) == set(), (
                "a filter passes over others'"
            )
            assert ids(await control(house, "resume", "root", state="suspended")) == {"a"}
            assert ids(await control(house, "kill", "bob", model=MODEL)) == {"b"}
            assert ids(await control(house, "kill", "root", user="ann")) == {"a"}


async def test_what_another_user_asked_is_not_found_in_the_cache(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path, prefixes=True) as house:
        body = {"model": MODEL, "prompt": "a" * 200, "max_tokens": 1}

        async def cached(caller: str) -> int:
            answer = await house.http.post(COMPLETIONS, json=body, headers=bearer(caller))
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert await cached("ann") == 0
        assert await cached("bob") == 0
        assert await cached("ann") > 0


async def test_clients_send_the_key_of_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house_with_keys(tmp_path) as house:
        tasks = [await begin(house, "a", "ann")]
        async with ended(house, tasks):
            async with AsyncClient(house.url) as client:
                with pytest.raises(Unauthorized, match="a key is needed"):
                    await client.requests()
            monkeypatch.setenv(KEY, "bob")
            async with AsyncClient(house.url) as client:
                assert [row.id for row in await client.requests()] == ["a"]
                with pytest.raises(Forbidden, match="another user's"):
                    await client.control("kill", ids=["a"])
            assert await cli(house, "kill", "a") == 2
            monkeypatch.setenv(KEY, "not a\nkey")
            with pytest.raises(InvalidRequest, match=KEY):
                Client(house.url)
            monkeypatch.setenv(KEY, "ann")
            assert await cli(house, "kill", "a") == 0


async def test_openais_client_is_told_as_by_openai(tmp_path: Path) -> None:
    async with house_with_keys(tmp_path) as house:
        with pytest.raises(openai.AuthenticationError, match="not known"):
            await house.ai.completions.create(model=MODEL, prompt="x")
        with pytest.raises(openai.PermissionDeniedError, match="right own"):
            await house.ai.with_options(api_key="eve").completions.create(model=MODEL, prompt="x")
        answer = await house.ai.with_options(api_key="ann").completions.create(model=MODEL, prompt="x", max_tokens=3)
        assert answer.choices[0].text == "abc"


async def test_a_new_key_counts_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_house(home=tmp_path) as house:
        assert (await house.http.get("/v1/requests")).status_code == 200
        assert main(["keys", "add", "ann", "--home", str(tmp_path)]) == 0
        secret = capsys.readouterr().out.strip()
        refusal(await house.http.get("/v1/requests"), 401)
        assert (await house.http.get("/v1/requests", headers=bearer(secret))).status_code == 200


# ---------------------------------------------------------------- read-only mode


async def test_a_read_only_daemon_serves_and_lets_nobody_control() -> None:
    async with open_house(readonly=True) as house:
        tasks = [await begin(house, "a", user="ann")]
        async with ended(house, tasks):
            for command in ("kill", "suspend", "resume"):
                assert "read-only" in refusal(await control(house, command, ids=["a"]), 403)["message"]
            for answer in [
                await control(house, "nice", ids=["a"], nice=3),
                await house.http.delete("/v1/requests/a"),
                await house.http.patch("/v1/requests/a", json={"priority": 5}),
                await house.http.post("/v1/requests/a/suspend"),
                await house.http.post("/v1/requests/a/hibernate"),
                await house.http.post("/v1/hibernate"),
                await house.http.put("/v1/policy", json={"policy": "fair"}),
                await control(house, "policy", policy="fair"),
            ]:
                assert "read-only" in refusal(answer, 403)["message"]
            assert await table(house) == {"a": ("live", 0)}
            assert ids(await control(house, "ps")) == {"a"}
        await house.until(lambda: house.service.stats is not None and house.service.stats.cancelled == 1)


# ---------------------------------------------------------------- suspended streams


async def test_a_suspended_stream_stays_open_with_comments_and_loses_no_token(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventStream.__init__, "__defaults__", (0.05,))  # seconds between comments
    house.executor.pause_s = PACE_S
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 100, "stream": True}
    text, suspended, comments = "", False, 0
    async with house.http.stream("POST", COMPLETIONS, json=body, headers={"X-Request-Id": "s"}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if len(text) >= 10 and not suspended:
                    suspended = ids(await control(house, "suspend", ids=["s"])) == {"s"}
            elif line.startswith(":") and suspended:
                comments += 1
                assert ids(await control(house, "resume", ids=["s"])) == {"s"}
    assert comments
    assert text == "".join(chr(ord("a") + number % 26) for number in range(100))
