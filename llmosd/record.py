"""Dataclasses of which each step makes many."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["record"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen: bool, slots: bool) -> object:
        """`dataclass`, but frozen in the type checker's eyes only: checked at run time it takes four times as long."""
        return dataclass(slots=slots, unsafe_hash=frozen)
