"""Who a caller is and what they may do: decided here, by the daemon, for HTTP and MQTT alike."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from llmosd.application import keys
from llmosd.application.keys import Key, Right
from llmosd.errors import ConfigError, Forbidden, Unauthorized
from llmosd.types import RequestView

log = logging.getLogger(__name__)


class Deed(Enum):
    """What a caller wants to do, the right it takes, and whether read-only mode forbids it."""

    SEE = Right.READ, False, "see anything"
    SUBMIT = Right.OWN, False, "submit requests"
    CONTROL = Right.OWN, True, "control requests"
    ADMINISTER = Right.ADMIN, True, "administer the daemon"

    @property
    def right(self) -> Right:
        return self.value[0]

    @property
    def changes(self) -> bool:
        return self.value[1]

    def __str__(self) -> str:
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who asks. `user` None: whoever they say they are, as there are no keys."""

    right: Right
    user: str | None = None
    readonly: bool = False

    def check(self, deed: Deed) -> None:
        """Raises Forbidden."""
        if self.right < deed.right:
            raise Forbidden(f"to {deed} takes a key with the right {deed.right}; this one has {self.right}")
        if deed.changes and self.readonly:
            raise Forbidden("this daemon is read-only: it was started with --readonly")

    @property
    def owner(self) -> str | None:
        """The user whose requests alone they may control; None for all."""
        return None if self.right is Right.ADMIN else self.user

    def may_read(self, view: RequestView) -> bool:
        """Whether they may see what a request was asked and said, not only that it is there."""
        return self.owner in (None, view.user)


class Access:
    """Keys are read anew when their file changes; while it is unreadable the last ones that were read count."""

    def __init__(self, home: Path, *, readonly: bool = False, exposed: bool = False) -> None:
        """`exposed`: other machines reach the daemon, so that nobody is let in without a key. Raises ConfigError."""
        self._home = home
        self._readonly = readonly
        self._exposed = exposed
        self._seen = self._mark()
        found = keys.read(home)
        self._keys = _by_digest(found)
        self.first = tuple(found or ())  # what was there at the start
        if exposed and self._keys is None:
            raise ConfigError(
                "other machines could reach the daemon and nobody has a key: `llmosd keys add USER` makes one; "
                "or leave --host at 127.0.0.1",
                param="host",
            )

    def caller(self, key: str, *, local: bool = True) -> Caller:
        """Whose key it is. Without a file of keys whoever is `local` is an administrator. Raises Unauthorized."""
        self._refresh()
        if self._keys is None and local and not self._exposed:
            return Caller(Right.ADMIN, None, self._readonly)
        if not key:
            raise Unauthorized("a key is needed: `llmosd keys add USER` makes one, where the daemon runs")
        if (known := (self._keys or {}).get(keys.digest_of(key))) is None:
            raise Unauthorized("this key is not known here")
        return Caller(known.right, known.user, self._readonly)

    def _refresh(self) -> None:
        if (mark := self._mark()) == self._seen:
            return
        self._seen = mark
        try:
            self._keys = _by_digest(keys.read(self._home))
        except ConfigError as error:
            log.error("keys stay as they were: %s", error.message)

    def _mark(self) -> tuple[int, int, int] | None:
        """Changes when the file does."""
        try:
            stat = (self._home / keys.FILE).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _by_digest(found: list[Key] | None) -> dict[str, Key] | None:
    return None if found is None else {key.digest: key for key in found}
