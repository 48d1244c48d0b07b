"""What keys do to requests, as commands to the daemon. It is the daemon that knows who may do what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos_top.items import Item
from llmosd.types import NICE_MAX, NICE_MIN

ECHO_S = 2.5  # by then a Frame shows what was changed


@dataclass(frozen=True, slots=True)
class Action:
    """A command with its fields, as `AsyncClient.control` takes them, and what to say once it is done."""

    command: str
    fields: Mapping[str, Any]
    done: str


def kill(item: Item) -> Action:
    return Action("kill", item.selects, f"cancelled {item.words}")


def suspend(item: Item) -> Action:
    """Or let go on, where all of it is suspended."""
    if all(row.state == "suspended" for row in item.members):
        return Action("resume", item.selects, f"resumed {item.words}")
    return Action("suspend", item.selects, f"suspended {item.words}")


class Nices:
    """Nice values that were asked for: Frames show them a moment later, and a key may be pressed again until then."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[int, float]] = {}  # of an item's key: the value, and when

    def change(self, item: Item, by: int, now: float) -> Action:
        """By so much, from the value of the first of its requests; all of them get the same."""
        asked, since = self._asked.get(item.key, (0, float("-inf")))
        nice = asked if now - since < ECHO_S else item.members[0].nice
        nice = max(NICE_MIN, min(NICE_MAX, nice + by))
        self._asked[item.key] = nice, now
        return Action("nice", {**item.selects, "nice": nice}, f"nice of {item.words} is now {nice}")
