"""Keeps a managed MQTT broker alive for as long as its daemon, and 5 s longer.

`python -m llmosd.application.broker_child FOLDER [COMMAND …]` prints the pid of a watcher that it leaves behind in a
session of its own, reparented, so that neither a signal to the daemon's group nor its crash reaches it. The watcher
runs COMMAND, or without one the broker of the `iotcore` wheel inside itself, and ends when the broker ends or the
owner named in FOLDER has been gone for `GRACE_S`: long enough for the broker to notice and send the last will, and for
a restarted daemon to become the owner by writing its own name there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from llmosd.hardware.process import ProcessIdentity

GRACE_S = 5.0
POLL_S = 0.5
LOG, OWNER, RUMQTTD_TOML = "broker.log", "owner.json", "rumqttd.toml"


def claim(folder: Path) -> bool:
    """Make the calling process the owner that the watcher of this folder follows; whether it was that already."""
    me = ProcessIdentity.current()
    already = _owner(folder) == me
    new = folder / f"{OWNER}.new"
    new.write_text(json.dumps({"pid": me.pid, "started": me.started}))
    new.replace(folder / OWNER)
    return already


def owner_alive(folder: Path) -> bool:
    """Whether the process named by `claim` runs. An unreadable claim (the folder was deleted) is nobody's."""
    owner = _owner(folder)
    return owner is not None and owner.alive()


def _owner(folder: Path) -> ProcessIdentity | None:
    try:
        return ProcessIdentity(**json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def follow(owner_alive: Callable[[], bool], broker_alive: Callable[[], bool]) -> None:
    """Return when the broker has ended, or its owner has been gone for the grace time."""
    last_seen = time.monotonic()
    while broker_alive() and time.monotonic() - last_seen < GRACE_S:
        if owner_alive():
            last_seen = time.monotonic()
        time.sleep(POLL_S)


def run_command(folder: Path, command: Sequence[str]) -> None:
    broker = subprocess.Popen(command)
    try:
        follow(lambda: owner_alive(folder), lambda: broker.poll() is None)
    finally:
        broker.terminate()
        broker.wait()


def run_iotcore(folder: Path) -> None:
    """rumqttd in threads of this process; it has no way to stop, and ends with the process."""
    from iotcore import IotCoreBroker

    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # else it logs every packet as an error
    broker = IotCoreBroker(config_path=str(folder / RUMQTTD_TOML))
    broker.check_ports()
    broker.start()
    follow(lambda: owner_alive(folder), lambda: True)


def detach(log: Path) -> None:
    """Leave the caller's process in a fork; standard output and error go to `log`."""
    if pid := os.fork():
        print(pid, flush=True)
        os._exit(0)
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source.fileno(), target)


def stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(arguments: Sequence[str]) -> None:
    folder, command = Path(arguments[0]), arguments[1:]
    detach(folder / LOG)
    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if command:
        run_command(folder, command)
    else:
        run_iotcore(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
