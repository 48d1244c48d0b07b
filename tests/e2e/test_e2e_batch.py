"""The official client's batch of 200 lines, its daemon killed in the middle: all results, each once."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import openai
from started import MODEL, Daemon, eventually, started

LINES = 200


def asked(number: int) -> str:
    body = {
        "model": MODEL,
        "prompt": f"{number} and",
        "max_tokens": 12 + number % 2,
        "temperature": 0,
        "ignore_eos": True,
    }
    return json.dumps({"custom_id": f"q{number}", "method": "POST", "url": "/v1/completions", "body": body})


def client(daemon: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0)


def test_a_batch_survives_kill_9(home: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text("\n".join(map(asked, range(LINES))))
    with started(home) as daemon:
        with client(daemon) as ai, (tmp_path / "asked.jsonl").open("rb") as file:
            uploaded = ai.files.create(file=file, purpose="batch")
            id = ai.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h").id
            eventually(lambda: ai.batches.retrieve(id).request_counts.completed > LINES // 4, "a part is done")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    with closing(sqlite3.connect(f"file:{home / 'llmos.db'}?mode=ro", uri=True)) as database:
        stored = {f"{id}-{line}" for (line,) in database.execute("SELECT line FROM batch_results")}
    assert LINES // 4 < len(stored) < LINES, "it was not killed in the middle"

    with started(home) as daemon, client(daemon) as ai:
        done = eventually(
            lambda: batch if (batch := ai.batches.retrieve(id)).status == "completed" else None, "the end"
        )
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed, done.error_file_id) == (LINES, LINES, 0, None)
        rows = [json.loads(row) for row in ai.files.content(done.output_file_id).text.splitlines()]
        assert [row["custom_id"] for row in rows] == [f"q{number}" for number in range(LINES)]
        for number, row in enumerate(rows):
            assert row["response"]["status_code"] == 200
            assert row["response"]["body"]["usage"]["completion_tokens"] == 12 + number % 2
        shown = daemon.cli("batch", "get", id)
        assert len(shown.stdout.splitlines()) == LINES
    with closing(sqlite3.connect(f"file:{home / 'llmos.db'}?mode=ro", uri=True)) as database:
        ran = database.execute("SELECT id, count(*) FROM requests WHERE state = 'finished' GROUP BY id").fetchall()
        assert database.execute("SELECT count(*) FROM batch_results").fetchone() == (0,)
    assert stored <= {request for request, _ in ran}
    assert all(times == 1 for request, times in ran if request in stored), "a line with a result ran again"
