"""One daemon per data directory: the lock that makes it so, and the record that tells other programs about it.

`llmosd.pid` holds the process id and is locked for as long as the daemon lives, so that a stale file never looks like
a running daemon. `daemon.json` holds its addresses and state; it stays behind when a daemon fails and says why.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import msgspec

from llmosd.errors import ConfigError

PID_FILE = "llmosd.pid"
RECORD_FILE = "daemon.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a daemon says of itself. States: starting, serving, draining, stopped, failed (`error` says why)."""

    state: str
    pid: int
    http: str = ""
    mqtt: str = ""
    mqtt5: str = ""  # where MQTT 5 is spoken, if known; another port than `mqtt` with some brokers
    db: str = ""
    model: str = ""
    backend: str = ""
    device: str = ""  # and why
    log: str = ""
    started_at: float = 0.0
    error: str = ""


@contextmanager
def claim(home: Path) -> Iterator[None]:
    """Be the daemon of `home` inside the block; raises ConfigError when another one is."""
    path = home / PID_FILE
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch()
    except OSError as exc:
        raise ConfigError(f"{home} cannot be used: {exc.strerror}; name another directory with --home") from exc
    with _locked(path) as file:
        if file is None:
            raise ConfigError(_already_running(home))
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while still locked: nobody can have claimed it in between


def running(home: Path) -> int | None:
    """The process id of the daemon of `home`, None when there is none."""
    path = home / PID_FILE
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0) or None
    return None


def read(home: Path) -> Record | None:
    """The last daemon's record, with the truth about whether it still runs."""
    try:
        record = msgspec.json.decode((home / RECORD_FILE).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    if record.state in ("stopped", "failed") or running(home) == record.pid:
        return record
    return replace(record, state="failed", error="the daemon ended without a word: killed or crashed")


def write(home: Path, record: Record) -> None:
    """Replace the record in one step, so that readers see the old or the new one."""
    scratch = home / f"{RECORD_FILE}.new"
    scratch.write_bytes(msgspec.json.encode(record))
    scratch.replace(home / RECORD_FILE)


@contextmanager
def _locked(path: Path) -> Iterator[IO[str] | None]:
    """The file, exclusively locked and still the one at `path`; None when somebody else holds it."""
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return


def _already_running(home: Path) -> str:
    record = read(home)
    where = f" at {record.http}" if record and record.http else ""
    return f"already running, pid {running(home)}{where}; `llmosd stop` ends it"
