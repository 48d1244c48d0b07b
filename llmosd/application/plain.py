"""Text that came from elsewhere, made safe for terminals, logs and messages."""

from __future__ import annotations

import unicodedata

UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, direction marks, surrogates, unassigned


def plain(text: str, limit: int | None = None) -> str:
    """`text` with what a terminal could obey written as an escape (`\\x1b`), cut to `limit` characters."""
    safe = "".join(_escape(c) if unicodedata.category(c) in UNSAFE else c for c in text)
    return safe if limit is None or len(safe) <= limit else safe[: max(0, limit - 1)] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
