"""`keys.toml`: who may talk to the daemon, what they may do there, and what they get.

[[key]]
sha256 = "5e88…"   # of the key, which itself is written nowhere
user = "ann"
rights = "own"     # read, own or admin: each includes those before it
running = 4        # and whatever else `[quota]` of config.toml has, for this user

A key is 256 random bits, so that its digest gives nothing away.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmosd import quota_config
from llmosd.durable import put
from llmosd.errors import ConfigError, NotFound
from llmosd.types import Quota, Quotas

FILE = "keys.toml"
MAX_USER = 256
_TABLE = "key"
_DIGITS = 64  # of a SHA-256 digest


class Right(IntEnum):
    """Each includes the ones before it."""

    READ = 1  # see: processes, metrics, telemetry, but nobody's text
    OWN = 2  # submit requests, and control those of one's own
    ADMIN = 3  # everybody's requests, models, policy

    @classmethod
    def parse(cls, name: object) -> Right:
        """Raises ValueError."""
        if not isinstance(name, str) or name not in RIGHTS:
            raise ValueError(f"rights must be one of {', '.join(RIGHTS)}")
        return RIGHTS[name]

    def __str__(self) -> str:
        return self.name.lower()


RIGHTS: Mapping[str, Right] = {str(right): right for right in Right}


@dataclass(frozen=True, slots=True)
class Key:
    """What the file knows of one key. `limits` are the fields of its user's quota that it states."""

    digest: str
    user: str
    right: Right
    limits: Mapping[str, int | float] = field(default_factory=dict)


def make() -> str:
    """A new key."""
    return f"llmos-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


# ---------------------------------------------------------------- the file


def read(home: Path) -> list[Key] | None:
    """The keys of a data directory, None where it has no such file. Raises ConfigError."""
    path = home / FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}", param=FILE) from exc
    entries = table.pop(_TABLE, [])
    if table or not isinstance(entries, list):
        raise ConfigError(f"{path}: it holds tables [[key]] and nothing else", param=FILE)
    keys = [_key(entry, f"key {number} of {path}") for number, entry in enumerate(entries, 1)]
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigError(f"{path}: a key stands there twice", param=FILE)
    _settings(keys, path)
    return keys


@contextmanager
def changing(home: Path) -> Iterator[None]:
    """Nobody else changes the file inside the block: it waits for whoever does."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def write(home: Path, keys: Sequence[Key]) -> None:
    """Replace the file in one step; its owner alone may read it. Raises ConfigError where keys contradict."""
    _settings(keys, home / FILE)
    put(home / FILE, "\n".join(map(_entry, keys)).encode())


def named(keys: Sequence[Key], start: str) -> Key:
    """The one whose digest begins so, or the only one of the user of that name. Raises NotFound."""
    found = [key for key in keys if key.digest.startswith(start)] or [key for key in keys if key.user == start]
    if not start or len(found) != 1:
        raise NotFound(f"{len(found)} keys are meant by {start!r}: `llmosd keys list` shows their ids")
    return found[0]


def _key(entry: Any, where: str) -> Key:
    known = {"sha256", "user", "rights", *quota_config.LIMITS}
    if not isinstance(entry, dict) or (unknown := sorted(entry.keys() - known)):
        what = f"unknown field {unknown[0]!r}" if isinstance(entry, dict) else "a table is needed"
        raise ConfigError(f"{where}: {what}; there are {', '.join(sorted(known))}", param=FILE)
    digest = entry.get("sha256")
    if not isinstance(digest, str) or len(digest) != _DIGITS or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"{where}: sha256 must be {_DIGITS} hexadecimal digits", param=FILE)
    try:
        key = Key(digest, check_user(entry.get("user")), Right.parse(entry.get("rights", "own")))
    except ValueError as exc:
        raise ConfigError(f"{where}: {exc}", param=FILE) from None
    limits = {name: entry[name] for name in quota_config.LIMITS if name in entry}
    quota_config.quota(limits, Quota(), where)
    return replace(key, limits=limits)


def check_user(user: object) -> str:
    """Raises ValueError."""
    if not isinstance(user, str) or not user or len(user) > MAX_USER or not user.isprintable():
        raise ValueError(f"user must be 1 to {MAX_USER} printable characters")
    return user


def _entry(key: Key) -> str:
    values = {"sha256": key.digest, "user": key.user, "rights": str(key.right)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in (values | dict(key.limits)).items()]
    return "\n".join([f"[[{_TABLE}]]", *lines, ""])


# ---------------------------------------------------------------- what users get


def quotas(keys: Sequence[Key], default: Quotas) -> Quotas:
    """What keys state takes the place of what `default` says of these users."""
    users = dict(default.users)
    for key in keys:
        if key.limits:
            users[key.user] = quota_config.quota(key.limits, users.get(key.user, default.default), FILE)
    return replace(default, users=users)


def _settings(keys: Sequence[Key], path: Path) -> None:
    """Two keys of a user may not state two values."""
    stated: dict[tuple[str, str], object] = {}
    for key in keys:
        for name, value in key.limits.items():
            if stated.setdefault((key.user, name), value) != value:
                raise ConfigError(f"{path}: two keys of user {key.user!r} state different values of {name}", param=name)
