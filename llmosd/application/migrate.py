"""Brings the database to the newest schema: numbered SQL files, forward only, `PRAGMA user_version` says how far."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from llmosd.errors import Unavailable
from llmosd.resources import data_dir


class StoreError(Unavailable):
    """The database cannot be opened, read or written."""

    code = "store_error"


def migrate(connection: sqlite3.Connection, folder: Path | None = None) -> None:
    """Apply what is missing, each file and its number in one transaction. Raises StoreError, the rest undone."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    files = _numbered(folder or data_dir("migrations"))
    if version > len(files):
        raise StoreError(
            f"the database has schema {version}, this llmosd knows {len(files)}: "
            "upgrade llmosd, or use another --home (LLMOS_HOME)"
        )
    for number, file in enumerate(files[version:], version + 1):
        try:
            script = file.read_text(encoding="utf-8")
            connection.executescript(f"BEGIN IMMEDIATE; {script}\n; PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error as exc:
            connection.rollback()  # a failed script leaves the transaction open
            raise StoreError(f"migration {file.name} failed and was undone: {exc}") from exc


def _numbered(folder: Path) -> list[Path]:
    files = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    for number, file in enumerate(files, 1):
        if int(file.name[:4]) != number:
            raise StoreError(f"migration {number:04d} is missing in {folder}: the installation is incomplete")
    return files
