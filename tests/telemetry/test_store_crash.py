"""kill -9 in the middle of writing, again and again: nothing acknowledged is lost, everything left over is marked."""

from __future__ import annotations

import random
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from llmosd.application.recovery import open_run

ROOT = Path(__file__).parents[2]
ROUNDS = 5


def write_until_killed(path: Path, lines: int) -> list[str]:
    """The ids that were acknowledged before the end, which comes after so many of them."""
    command = [sys.executable, "-m", "tests.telemetry.writer", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        first = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        *whole, _torn = (b"".join(first) + process.stdout.read()).decode().split("\n")
    return whole


def test_kill_9_during_load_loses_no_acknowledged_request_and_marks_the_rest(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "llmos.db", set[str]()
    draw = random.Random(9)
    for _ in range(ROUNDS):
        acknowledged |= set(write_until_killed(path, draw.randint(1, 200)))
    now = time.time()
    open_run(path, now)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        states = {id: (state, error) for id, state, error in db.execute("SELECT id, state, error FROM requests")}
        gaps = db.execute("SELECT from_at, to_at, why FROM gaps ORDER BY from_at").fetchall()
        uneven = "total_ns <> queued_ns + prefill_ns + decode_ns + preempted_ns + other_ns"
        assert db.execute(f"SELECT count(*) FROM requests WHERE {uneven} OR ended_at IS NULL").fetchone() == (0,)
        notices = db.execute("SELECT count(*) FROM events WHERE kind = 'daemon.gap'").fetchone()[0]
    assert len(acknowledged) > ROUNDS and acknowledged <= states.keys()
    assert {state for state, _ in states.values()} == {"finished", "failed"}
    failed = [error for state, error in states.values() if state == "failed"]
    assert all(re.fullmatch(r"daemon stopped at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", error) for error in failed)
    assert len(gaps) == notices == ROUNDS and {why for *_, why in gaps} == {"daemon killed"}
    assert all(start <= end for start, end, _ in gaps) and now - gaps[-1][1] < 1
