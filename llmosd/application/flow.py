"""What a stream does to its request when its client reads slowly, or no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmosd.application.engine import Control, Engine, Pause, Unpause
from llmosd.system.control import Kill, Selection
from llmosd.types import RequestId


@dataclass(frozen=True, slots=True)
class BackPressure:
    """How many tokens are kept for a client that does not read before its request pauses, and how long it may then."""

    tokens: int = 256
    timeout_s: float = 300.0


DEFAULT = BackPressure()


class Flow:
    """Nobody waits for the replies to these commands; what comes of them comes as events."""

    def __init__(self, engine: Engine, tickets: Iterator[int]) -> None:
        self._engine = engine
        self._tickets = tickets

    def cancel(self, id: RequestId, reason: str) -> None:
        self._engine.post(Control(next(self._tickets), Kill(reason), Selection((id,))))

    def pause(self, id: RequestId) -> None:
        self._engine.post(Pause(next(self._tickets), id))

    def unpause(self, id: RequestId) -> None:
        self._engine.post(Unpause(next(self._tickets), id))
