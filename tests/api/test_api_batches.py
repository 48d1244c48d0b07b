"""Batch jobs as the official client sees them, over daemons that end."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest
from api_house import LIMITS, MODEL, PACE_S, House, open_house
from openai.types import Batch

from llmosd.application.cli import main
from llmosd.application.migrate import StoreError
from llmosd.application.store import Statement
from llmosd.errors import QueueFull
from llmosd.types import ENDED, State

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(home=tmp_path) as house:
        yield house


def line(id: str, url: str = COMPLETIONS, **body: Any) -> str:
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 3, **body}
    return json.dumps({"custom_id": id, "method": "POST", "url": url, "body": asked})


async def start(house: House, *lines: str, endpoint: str = COMPLETIONS, window: str = "24h", **more: Any) -> Batch:
    file = await house.ai.files.create(file=("asked.jsonl", "\n".join(lines).encode()), purpose="batch")
    create: Any = house.ai.batches.create
    made: Batch = await create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)
    return made


async def ended(house: House, id: str) -> Batch:
    await house.until(lambda: not house.jobs.get(id).unfinished)
    return await house.ai.batches.retrieve(id)


async def lines_of(house: House, id: str | None) -> dict[str, dict[str, Any]]:
    """Lines of a result file by custom_id, each of which is there once."""
    if id is None:
        return {}
    rows = [json.loads(row) for row in (await house.ai.files.content(id)).text.splitlines()]
    by_id = {row["custom_id"]: row for row in rows}
    assert len(by_id) == len(rows), "a line was answered twice"
    return by_id


async def test_a_batch(house: House) -> None:
    batch = await start(house, *(line(f"q{i}", max_tokens=i + 1) for i in range(5)), metadata={"for": "tests"})
    assert (batch.status, batch.metadata, batch.object) == ("validating", {"for": "tests"}, "batch")
    batch = await ended(house, batch.id)
    assert batch.status == "completed" and batch.error_file_id is None and batch.model == MODEL
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (5, 5, 0)
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (25, 15, 40)
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
    answers = await lines_of(house, batch.output_file_id)
    assert list(answers) == [f"q{i}" for i in range(5)]
    for number, row in enumerate(answers.values()):
        assert row["error"] is None and row["response"]["status_code"] == 200
        body = row["response"]["body"]
        assert body["object"] == "text_completion" and body["choices"][0]["text"] == "abcde"[: number + 1]
        view = await house.service.get(row["response"]["request_id"])
        assert (view.service_class, view.state) == ("batch", State.FINISHED)
    assert [b.id async for b in house.ai.batches.list()] == [batch.id]


async def test_chats(house: House) -> None:
    asked = {"custom_id": "a", "method": "POST", "url": CHAT}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    batch = await ended(house, (await start(house, json.dumps({**asked, "body": body}), endpoint=CHAT)).id)
    answers = await lines_of(house, batch.output_file_id)
    assert answers["a"]["response"]["body"]["choices"][0]["message"]["content"] == "ab"


async def test_what_is_wrong_with_a_line_concerns_that_line(house: House) -> None:
    batch = await start(
        house,
        line("good"),
        line("hot", temperature=3),
        line("nobody", model="gpt-9"),
        line("long", prompt="x" * 600),
        line("flow", stream=True),
        line("odd", frobnicate=1),
    )
    batch = await ended(house, batch.id)
    assert batch.status == "completed" and batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 5)
    assert list(await lines_of(house, batch.output_file_id)) == ["good"]
    errors = await lines_of(house, batch.error_file_id)
    told = {
        id: (row["response"]["status_code"], row["response"]["body"]["error"]["param"]) for id, row in errors.items()
    }
    assert told == {
        "hot": (400, "temperature"),
        "nobody": (404, "model"),
        "long": (400, "max_tokens"),
        "flow": (400, "stream"),
        "odd": (400, "frobnicate"),
    }


async def test_a_bad_file_fails_with_the_numbers_of_its_lines(house: House) -> None:
    batch = await start(
        house,
        line("a"),
        "",
        "no json",
        line("a"),
        line("b", url=CHAT),
        '{"custom_id": "c", "method": "GET", "url": "/v1/completions", "body": {}}',
        '{"custom_id": "d", "method": "POST", "url": "/v1/completions", "body": 1}',
        '{"method": "POST", "url": "/v1/completions", "body": {}}',
    )
    batch = await ended(house, batch.id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    assert batch.errors is not None and batch.errors.data is not None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "mismatched_endpoint"),
        (6, "invalid_request"),
        (7, "invalid_request"),
        (8, "invalid_request"),
    ]
    assert not house.executor.started


async def test_an_empty_file_fails(house: House) -> None:
    batch = await ended(house, (await start(house, "")).id)
    assert batch.errors is not None and batch.errors.data is not None
    assert (batch.status, batch.errors.data[0].code) == ("failed", "empty_file")


async def test_few_lines_run_at_once_and_other_requests_go_on(house: House) -> None:
    house.executor.pause_s = 0.001
    batch = await start(house, *(line(str(i)) for i in range(30)))
    other = await start(house, *(line(str(i)) for i in range(30)))
    answer = await house.ai.completions.create(model=MODEL, prompt="x", max_tokens=2)
    assert answer.choices[0].text == "ab"
    for id in (batch.id, other.id):
        assert len(await lines_of(house, (await ended(house, id)).output_file_id)) == 30
    order = [view.id.split("-")[0] for view in house.recorded if view.service_class == "batch"]
    assert order[:30] != [batch.id] * 30, "batches take turns"
    assert max(each.stats.running + each.stats.waiting for each in house.batches) <= 2 + 1


async def test_a_cancelled_batch_keeps_what_is_done(house: House) -> None:
    batch = await start(house, line("quick", max_tokens=1), *(line(str(i), max_tokens=450) for i in range(9)))
    await house.until(lambda: house.jobs.get(batch.id).request_counts.completed >= 1)
    house.executor.gate.clear()
    assert (await house.ai.batches.cancel(batch.id)).status == "cancelling"
    house.executor.gate.set()
    batch = await ended(house, batch.id)
    assert batch.status == "cancelled" and batch.cancelled_at and batch.request_counts is not None
    answers, errors = await lines_of(house, batch.output_file_id), await lines_of(house, batch.error_file_id)
    assert "quick" in answers and not answers.keys() & errors.keys() and len(answers) + len(errors) == 10
    assert {row["error"]["code"] for row in errors.values()} <= {"batch_cancelled"}
    await house.service.roster.idle()
    with pytest.raises(openai.BadRequestError, match="it is cancelled"):
        await house.ai.batches.cancel(batch.id)


async def test_a_batch_whose_window_ends_keeps_what_is_done(house: House) -> None:
    house.executor.gate.clear()
    batch = await start(house, *(line(str(i)) for i in range(5)), window="1s")
    batch = await ended(house, batch.id)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    errors = await lines_of(house, batch.error_file_id)
    assert [row["error"]["code"] for row in errors.values()] == ["batch_expired"] * 5


async def test_a_batch_goes_on_under_the_next_daemon(tmp_path: Path) -> None:
    async with open_house(home=tmp_path) as house:
        batch = await start(house, *(line(str(i)) for i in range(40)))
        await house.until(lambda: house.jobs.get(batch.id).request_counts.completed >= 7)
        house.service.stop()
    async with open_house(home=tmp_path) as house:
        before = house.jobs.get(batch.id).request_counts
        assert 7 <= before.completed < 40
        batch = await ended(house, batch.id)
        assert batch.status == "completed"
        assert list(await lines_of(house, batch.output_file_id)) == [str(i) for i in range(40)]
        ran = [view for view in house.recorded if view.service_class == "batch"]
        assert len(ran) == 40 - before.completed, "a line with a result ran again"
    async with open_house(home=tmp_path) as house:
        assert len(await lines_of(house, batch.output_file_id)) == 40, "results outlive the daemon"
        assert (await house.ai.batches.retrieve(batch.id)) == batch


async def test_a_hibernated_line_runs_again_and_once(tmp_path: Path) -> None:
    async with open_house(home=tmp_path) as house:
        house.executor.pause_s = PACE_S
        batch = await start(house, *(line(str(i), max_tokens=100) for i in range(2)))
        await house.until(lambda: len(house.recorded) == 2)
        await house.hibernation.hibernate()
    async with open_house(home=tmp_path) as house:
        assert len(house.restored) == 2
        batch = await ended(house, batch.id)
        assert len(await lines_of(house, batch.output_file_id)) == 2
        await house.service.roster.idle()
        states = [(await house.service.get(view.id)).state for view in [*house.restored, *house.recorded]]
        assert set(states[:2]) <= ENDED and states[2:] == [State.FINISHED] * 2


async def test_files(house: House, tmp_path: Path) -> None:
    content = "\n".join(line(str(i)) for i in range(3)).encode() + b"\r\n--x\r\n\xff"
    file = await house.ai.files.create(file=("näme\t.jsonl", content), purpose="batch")
    assert (file.bytes, file.purpose, file.filename) == (len(content), "batch", "näme%09.jsonl")
    assert (await house.ai.files.content(file.id)).content == content
    assert await house.ai.files.retrieve(file.id) == file
    kept = tmp_path / "files"
    assert [path.name for path in kept.iterdir()] == [file.id]
    assert stat.S_IMODE((kept / file.id).stat().st_mode) == 0o600 and stat.S_IMODE(kept.stat().st_mode) == 0o700
    others = [await house.ai.files.create(file=(f"{i}", b"x"), purpose="batch") for i in range(3)]
    listed = [file.id async for file in house.ai.files.list(limit=2)]
    assert listed == [other.id for other in others[::-1]] + [file.id]
    assert (await house.ai.files.delete(file.id)).deleted
    assert not (kept / file.id).exists()
    with pytest.raises(openai.NotFoundError):
        await house.ai.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        await house.ai.files.content("../llmos.db")


async def test_an_input_file_stays_until_its_batch_has_ended(house: House) -> None:
    house.executor.gate.clear()
    batch = await start(house, line("a"))
    with pytest.raises(openai.BadRequestError, match="cancel that first"):
        await house.ai.files.delete(batch.input_file_id)
    house.executor.gate.set()
    await ended(house, batch.id)
    assert (await house.ai.files.delete(batch.input_file_id)).deleted


async def test_files_and_batches_expire(house: House, tmp_path: Path) -> None:
    create: Any = house.ai.files.create
    short = await create(file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert short.expires_at == short.created_at + 3600
    batch = await ended(house, (await start(house, line("a"))).id)
    await house.jobs._sweep(short.created_at + 3600)
    left = [file.id async for file in house.ai.files.list()]
    assert sorted(left) == sorted([batch.input_file_id, str(batch.output_file_id)])
    await house.jobs._sweep(short.created_at + 31 * 86_400)
    assert not [batch async for batch in house.ai.batches.list()] and not list((tmp_path / "files").iterdir())


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"metadata": {"k": "v" * 600}}, "metadata"),
        ({"extra_body": {"model": "x"}}, "model"),
    ],
)
async def test_a_batch_that_cannot_be(house: House, asked: dict[str, Any], param: str) -> None:
    file = await house.ai.files.create(file=("a", line("a").encode()), purpose="batch")
    create: Any = house.ai.batches.create
    with pytest.raises(openai.BadRequestError) as caught:
        await create(**{"input_file_id": file.id, "endpoint": COMPLETIONS, "completion_window": "24h", **asked})
    assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        await create(input_file_id="file-none", endpoint=COMPLETIONS, completion_window="24h")
    assert not [batch async for batch in house.ai.batches.list()]


async def test_an_upload_that_cannot_be(house: House, tmp_path: Path) -> None:
    create: Any = house.ai.files.create
    with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
        await create(file=("a", b"x"), purpose="fine-tune")
    post = house.http.post
    for answer in (
        await post("/v1/files", json={"purpose": "batch"}),
        await post("/v1/files", data={"purpose": "batch"}, files={"other": b"x"}),
        await post("/v1/files", content=b"", headers={"Content-Type": "multipart/form-data; boundary=x"}),
        await post(
            "/v1/files", content=b"--x\r\nnonsense", headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
        await post("/v1/files", content=b"--x--", headers={"Content-Type": "multipart/form-data; boundary=x"}),
    ):
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert not list((tmp_path / "files").iterdir())


async def test_files_and_batches_are_their_users_own(house: House, tmp_path: Path) -> None:
    users = {"ann": "own", "bob": "own", "root": "admin", "eve": "read"}
    table = '[[key]]\nsha256 = "{}"\nuser = "{}"\nrights = "{}"\n'
    keys = [table.format(sha256(user.encode()).hexdigest(), user, rights) for user, rights in users.items()]
    (tmp_path / "keys.toml").write_text("".join(keys))
    ann, bob, root, eve = (house.ai.with_options(api_key=user) for user in users)
    file = await ann.files.create(file=("a", line("a", user="bob").encode()), purpose="batch")
    with pytest.raises(openai.NotFoundError):
        await bob.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    batch = await ann.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    await house.until(lambda: not house.jobs.get(batch.id).unfinished)
    for denied in (
        bob.files.retrieve(file.id),
        bob.files.content(file.id),
        bob.files.delete(file.id),
        bob.batches.retrieve(batch.id),
        bob.batches.cancel(batch.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await denied
    with pytest.raises(openai.PermissionDeniedError):
        await eve.files.create(file=("a", b"x"), purpose="batch")
    assert not [each async for each in bob.batches.list()] and not [each async for each in bob.files.list()]
    assert [each.id async for each in root.batches.list()] == [batch.id]
    assert len([each async for each in ann.files.list()]) == 2
    [view] = [view for view in house.recorded if view.service_class == "batch"]
    assert (view.user, view.session) == ("ann", batch.id), "a line runs as its batch's user, whatever its body says"


async def test_lines_give_their_slots_to_whoever_waits_for_an_answer(tmp_path: Path) -> None:
    async with open_house(home=tmp_path, limits=replace(LIMITS, slots=2)) as house:
        house.keep_step()
        batch = await start(house, *(line(str(i), max_tokens=400) for i in range(4)))
        await house.until(lambda: house.service.stats is not None and house.service.stats.running == 2)
        answer = await house.ai.completions.create(model=MODEL, prompt="x", max_tokens=20)
        assert answer.choices[0].text == "abcdefghijklmnopqrst"
        assert house.jobs.get(batch.id).request_counts.completed == 0, "it had to wait for a line"
        assert house.service.stats is not None and house.service.stats.preemptions >= 1
        batch = await ended(house, batch.id)
        answers = await lines_of(house, batch.output_file_id)
        assert [len(row["response"]["body"]["choices"][0]["text"]) for row in answers.values()] == [400] * 4


async def test_a_full_queue_is_no_error_of_a_line(tmp_path: Path) -> None:
    async with open_house(home=tmp_path, limits=replace(LIMITS, slots=1, queue_limit=1)) as house:
        house.executor.gate.clear()
        create = house.ai.completions.create
        others = [asyncio.create_task(create(model=MODEL, prompt="x", max_tokens=60)) for _ in range(2)]
        await house.until(lambda: len(house.service.roster._streams) == 2)
        batch = await start(house, *(line(str(i)) for i in range(3)))
        await house.until(lambda: len(house.service.roster._streams) == 4)
        house.executor.gate.set()
        await asyncio.gather(*others)
        batch = await ended(house, batch.id)
        assert len(await lines_of(house, batch.output_file_id)) == 3
        assert any(isinstance(reply.value, QueueFull) for each in house.batches for reply in each.replies)


async def test_the_command_line(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "asked.jsonl").write_text("\n".join((line("a"), line("b", temperature=9))))

    async def llmosd(*args: str) -> tuple[int, str, str]:
        address = ["--home", str(tmp_path), "--port", house.url.rsplit(":", 1)[1]]
        code = await asyncio.to_thread(main, ["batch", *args, *address])
        told = capsys.readouterr()
        return code, told.out, told.err

    asked = str(tmp_path / "asked.jsonl")
    code, id, _ = await llmosd("submit", asked, "--endpoint", COMPLETIONS)
    id = id.strip()
    assert code == 0
    await ended(house, id)
    assert id in (await llmosd("list"))[1] and json.loads((await llmosd("list", "--json"))[1])[0]["id"] == id
    short = id.removeprefix("batch_")[:8]
    assert json.loads((await llmosd("show", short))[1])["status"] == "completed"
    assert (await llmosd("get", short, "-o", str(tmp_path / "out")))[0] == 0
    assert json.loads((tmp_path / "out").read_text())["custom_id"] == "a"
    assert (await llmosd("get", short, "--errors", "-o", str(tmp_path / "bad")))[0] == 0
    assert json.loads((tmp_path / "bad").read_text())["custom_id"] == "b"
    for bad in (["cancel", short], ["show", "none"], ["submit", str(tmp_path / "missing")]):
        code, _, told = await llmosd(*bad)
        assert code == 2 and len(told.splitlines()) == 1


def break_writes(house: House, beginning: str, times: int) -> None:
    """The next so many writes of statements that begin so fail, as on a disk that is full."""
    ledger, left = house.jobs._ledger, [None] * times
    write = ledger.write

    async def failing(*statements: Statement) -> None:
        if left and any(text.startswith(beginning) for text, _ in statements):
            left.pop()
            raise StoreError("no space left")
        await write(*statements)

    ledger.write = failing  # type: ignore[method-assign]


async def test_a_result_that_cannot_be_stored_is_stored_later(house: House) -> None:
    break_writes(house, "INSERT OR IGNORE INTO batch_results", times=1)
    batch = await ended(house, (await start(house, *(line(str(i)) for i in range(3)))).id)
    assert len(await lines_of(house, batch.output_file_id)) == 3
    assert len([view for view in house.recorded if view.service_class == "batch"]) == 3


async def test_a_batch_that_could_not_be_finalized_is_finalized_by_the_next_daemon(tmp_path: Path) -> None:
    async with open_house(home=tmp_path) as house:
        break_writes(house, "DELETE FROM batch_results", times=1)
        batch = await start(house, *(line(str(i)) for i in range(5)))
        await house.until(lambda: any(note.kind == "batch.stuck" for note in house.notes))
        assert (await house.ai.batches.retrieve(batch.id)).status == "finalizing"
        assert [file.id async for file in house.ai.files.list()] == [batch.input_file_id]
    async with open_house(home=tmp_path) as house:
        batch = await ended(house, batch.id)
        assert (batch.status, len(await lines_of(house, batch.output_file_id))) == ("completed", 5)
        assert not house.recorded, "a line with a result ran again"
        assert sorted(path.name for path in (tmp_path / "files").iterdir()) == sorted(
            [batch.input_file_id, str(batch.output_file_id)]
        )
