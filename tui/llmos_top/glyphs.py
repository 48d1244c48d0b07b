"""The characters that carry meaning, in Unicode and in ASCII. Each stands beside a word, letter or number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos_top.liveness import Life
from llmosd.types import State


@dataclass(frozen=True, slots=True)
class Glyphs:
    levels: str  # of a sparkline, lowest first
    full: str
    empty: str
    cursor: str
    ascending: str
    descending: str
    bullet: str
    paused: str
    high: str
    alarm: str
    life: dict[Life, str]
    state: dict[str, str]
    ascii: bool = False

    def bar(self, share: float | None, width: int) -> str:
        """`share` 0 … 1 of `width` cells. Anything above nothing shows a cell, anything below all leaves one."""
        if share is None or width <= 0:
            return " " * max(0, width)
        cells = round(min(1.0, max(0.0, share)) * width)
        if 0 < share < 1 and width > 1:
            cells = min(width - 1, max(1, cells))
        return self.full * cells + self.empty * (width - cells)

    def spark(self, values: Sequence[float | None], width: int, top: float | None = None) -> str:
        """The last `width` values, right-aligned, blank where one is missing; `top`, else their maximum, is full."""
        shown = list(values[-width:]) if width > 0 else []
        peak = top if top is not None else max((v for v in shown if v is not None), default=0.0)
        return "".join(self._level(v, peak) for v in shown).rjust(max(0, width))

    def _level(self, value: float | None, peak: float) -> str:
        if value is None:
            return " "
        last = len(self.levels) - 1
        return self.levels[round(min(1.0, max(0.0, value / peak if peak > 0 else 0.0)) * last)]


LETTERS: dict[str, str] = {
    State.QUEUED: "W",
    State.PREFILL: "P",
    State.DECODE: "R",
    State.PREEMPTED: "V",
    State.SWAPPED: "D",
    State.SUSPENDED: "T",
    State.PAUSED: "B",
    State.FINISHED: "F",
    State.CANCELLED: "C",
    State.FAILED: "E",
}

UNICODE = Glyphs(
    levels="▁▂▃▄▅▆▇█",
    full="▓",
    empty="░",
    cursor="▸",
    ascending="▲",
    descending="▼",
    bullet="·",
    paused="‖",
    high="▲",
    alarm="‼",
    life={
        Life.CONNECTING: "○",
        Life.LIVE: "●",
        Life.STALE: "◐",
        Life.DAEMON_DOWN: "✕",
        Life.BROKER_DOWN: "✕",
        Life.VIA_DB: "◑",
    },
    state={
        State.QUEUED: "○",
        State.PREFILL: "◐",
        State.DECODE: "●",
        State.PREEMPTED: "↺",
        State.SWAPPED: "▽",
        State.SUSPENDED: "‖",
        State.PAUSED: "◫",
        State.FINISHED: "✓",
        State.CANCELLED: "✕",
        State.FAILED: "‼",
    },
)

ASCII = Glyphs(
    levels="_.:-=+*#",
    full="#",
    empty=".",
    cursor=">",
    ascending="^",
    descending="v",
    bullet="|",
    paused="||",
    high="^",
    alarm="!!",
    life={
        Life.CONNECTING: "o",
        Life.LIVE: "*",
        Life.STALE: "~",
        Life.DAEMON_DOWN: "X",
        Life.BROKER_DOWN: "X",
        Life.VIA_DB: "%",
    },
    state={
        State.QUEUED: ".",
        State.PREFILL: "+",
        State.DECODE: "*",
        State.PREEMPTED: "<",
        State.SWAPPED: "v",
        State.SUSPENDED: "|",
        State.PAUSED: ":",
        State.FINISHED: "=",
        State.CANCELLED: "x",
        State.FAILED: "!",
    },
    ascii=True,
)
