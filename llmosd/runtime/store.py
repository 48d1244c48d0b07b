"""Changes to the model store, one at a time and whole or not at all.

What is being made lies in a `.partial-` directory on the same filesystem and is renamed into place when it is
complete and on disk. Whoever holds the lock is the only one making something, so any other such directory is what a
killed process left behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmosd.durable import synchronise

_PARTIAL = ".partial-"


@contextmanager
def workspace(store: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """An empty directory inside `store`, under the store's lock; what is left in it at the end is removed.

    `on_wait` is called once if another process holds the lock. The kernel drops the lock with its process.
    """
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as lock:
        _acquire(lock.fileno(), on_wait)
        for leftover in store.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=store))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(made: Path, target: Path) -> None:
    """Flush a finished directory to disk and rename it to `target`, which survives a crash afterwards."""
    for folder, _, names in os.walk(made):
        for name in names:
            synchronise(Path(folder) / name)
        synchronise(Path(folder))
    target.parent.mkdir(exist_ok=True)
    made.rename(target)
    synchronise(target.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _acquire(descriptor: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
