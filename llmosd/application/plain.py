"""Text that came from elsewhere, made safe for terminals, logs and messages."""

from __future__ import annotations

from unicodedata import category

UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, direction marks, surrogates, unassigned


def plain(text: str, limit: int | None = None) -> str:
    """`text` with what a terminal could obey written as an escape (`\\x1b`), cut to `limit` characters."""
    if limit is not None:
        text = text[: limit + 1]  # an escape is longer than what it stands for
    safe = text if text.isprintable() else "".join(_escape(c) if category(c) in UNSAFE else c for c in text)
    return safe if limit is None or len(safe) <= limit else safe[: max(0, limit - 1)] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
