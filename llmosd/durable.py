"""Files that are whole or not there, and that outlive a crash of the machine."""

from __future__ import annotations

import os
from pathlib import Path

SCRATCH = ".new"  # behind the name of what is being written


def put(path: Path, data: bytes | memoryview) -> None:
    """Replace a file in one step; its owner alone may read it. Durable once its directory is synchronised.

    Raises OSError, with the file as it was.
    """
    scratch = path.with_name(path.name + SCRATCH)
    scratch.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def synchronise(path: Path) -> None:
    """Have a file's contents, or the names in a directory, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
