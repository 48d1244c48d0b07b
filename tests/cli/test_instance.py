from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmosd.application import instance
from llmosd.application.instance import Record
from llmosd.errors import ConfigError

HOLD = "import sys; from pathlib import Path; from llmosd.application import instance\n"
HOLD += "with instance.claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_claim_is_seen_and_given_back(tmp_path: Path) -> None:
    home = tmp_path / "new"
    assert instance.running(home) is None
    with instance.claim(home):
        assert (home / instance.PID_FILE).read_text() == f"{os.getpid()}\n"
    assert instance.running(home) is None
    assert not (home / instance.PID_FILE).exists()


def test_one_daemon_per_home_and_a_killed_one_leaves_no_claim(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        instance.write(tmp_path, Record("serving", other.pid, http="http://127.0.0.1:1"))
        assert instance.running(tmp_path) == other.pid
        with pytest.raises(ConfigError, match=f"pid {other.pid} at http://127.0.0.1:1"), instance.claim(tmp_path):
            pass
        other.kill()
    assert instance.running(tmp_path) is None, "the file is still there, its lock is not"
    assert (tmp_path / instance.PID_FILE).exists()
    record = instance.read(tmp_path)
    assert record and (record.state, record.pid) == ("failed", other.pid)
    with instance.claim(tmp_path):
        assert (tmp_path / instance.PID_FILE).read_text() == f"{os.getpid()}\n"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"home cannot be used.*--home"),
        instance.claim(tmp_path / "file" / "home"),
    ):
        pass


def test_a_broken_record_is_none(tmp_path: Path) -> None:
    assert instance.read(tmp_path) is None
    (tmp_path / instance.RECORD_FILE).write_text("{")
    assert instance.read(tmp_path) is None
