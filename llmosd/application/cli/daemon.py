"""`llmosd start`, `stop` and `status`: the daemon's life as seen from outside."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from llmosd.application import instance
from llmosd.application.cli import options, output
from llmosd.application.instance import Record
from llmosd.config import OPTIONS, Config
from llmosd.errors import ConfigError, LlmosError, Unavailable

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05


def add(commands: Any) -> None:
    start = commands.add_parser("start", help="start the daemon")
    options.add_config(start)
    start.add_argument("--detach", action="store_true", help="start in the background and return when it serves")
    start.set_defaults(handler=_start)

    stop = commands.add_parser("stop", help="stop the daemon once its running requests have ended")
    options.add_config(stop, ("home",))
    stop.add_argument("--now", action="store_true", help="do not wait for running requests")
    stop.set_defaults(handler=_stop)

    status = commands.add_parser("status", help="show whether the daemon runs, and where")
    options.add_config(status, ("home",))
    options.add_json(status)
    status.set_defaults(handler=_status)


def _start(args: argparse.Namespace) -> int:
    settings = options.load(args)
    if args.detach:
        record = detach(settings)
        print(f"serving {record.model} at {record.http}, pid {record.pid}, log {record.log}")
        return 0
    from llmosd.application.daemon import run

    return run(settings)


def detach(settings: Config) -> Record:
    """Start a daemon in a session of its own and wait until it serves; raises LlmosError with its last words."""
    if pid := instance.running(settings.home):
        raise ConfigError(f"already running, pid {pid}; `llmosd status` says where")
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with settings.log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmosd", "start"],
            env=os.environ | _as_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=settings.home,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise LlmosError(f"the daemon did not start: {_last_words(settings, child.pid)}")
        record = instance.read(settings.home)
        if record and record.pid == child.pid and record.state == "serving":
            return record
        time.sleep(POLL_S)
    raise LlmosError(
        f"the daemon (pid {child.pid}) does not serve after {START_TIMEOUT_S:.0f} s: see {settings.log_file}"
    )


def _stop(args: argparse.Namespace) -> int:
    home = options.load(args).home
    pid = instance.running(home)
    if pid is None:
        raise Unavailable(f"no daemon runs for {home}")
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, signal.SIGTERM)
        if args.now:
            time.sleep(POLL_S)  # two signals sent at once may arrive as one
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while instance.running(home) == pid:
        if time.monotonic() > deadline:
            raise LlmosError(f"pid {pid} has not ended after {STOP_TIMEOUT_S:.0f} s: `llmosd stop --now` forces it")
        time.sleep(POLL_S)
    print(f"stopped, pid {pid}")
    return 0


def _status(args: argparse.Namespace) -> int:
    settings = options.load(args)
    record = instance.read(settings.home) or Record(state="stopped", pid=0, db=str(settings.database))
    alive = instance.running(settings.home) is not None
    facts = asdict(record) | {"uptime_s": round(time.time() - record.started_at, 1) if alive else 0.0}
    if args.json:
        output.json(facts)
    else:
        output.facts((name, value) for name, value in facts.items() if value and name != "started_at")
    return 0 if alive else 3


def _as_environment(settings: Config) -> dict[str, str]:
    """What gives another process the same configuration. Not flags: everybody may read them, passwords too."""
    told = [option for option in OPTIONS if settings.sources[option.name] != "default"]
    return {option.env: str(getattr(settings, option.name)) for option in told}


def _last_words(settings: Config, pid: int) -> str:
    """The error that a daemon recorded, else the last line of its log."""
    record = instance.read(settings.home)
    if record and record.pid == pid and record.error:
        return record.error
    lines = settings.log_file.read_text(errors="replace").splitlines()
    return lines[-1].removeprefix("llmosd: ") if lines else f"no reason given (log {settings.log_file})"
