"""Whole screens against what is kept in `screens/`, at three sizes, live and in trouble.

`LLMOS_KEEP_SCREENS=1` keeps what is painted now as the new truth; look at the difference before committing it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmos_top.app import LlmosTop
from llmos_top.glyphs import UNICODE
from llmos_top.headline import Where
from llmos_top.messages import BrokerDown, BrokerUp, EventArrived, FrameArrived, Message, StatusArrived
from tests.tui.desk import Still
from tests.tui.frames import event, frame, status
from tests.tui.screen_text import screen_text

KEPT = Path(__file__).with_name("screens")
SIZES = ((120, 40), (80, 24), (60, 15))
WHERE = Where("mqtt://127.0.0.1:1883", "/var/lib/llmos/llmos.db")
SEEN = 30  # Frames, one a second from second 1


@dataclass
class Script:
    """A source that says what is written, each at its time, then nothing."""

    clock: Still
    lines: list[tuple[float, Message]]
    end: float
    where: Where = WHERE

    async def follow(self, deliver: Callable[[Message], None]) -> None:
        for now, message in self.lines:
            self.clock.now = now
            deliver(message)
        self.clock.now = self.end
        await asyncio.Event().wait()

    def retry_now(self) -> None:
        """A script does not connect."""


def frames() -> list[tuple[float, Message]]:
    seen = [(float(seq), FrameArrived(frame(seq), b"{}", retained=False)) for seq in range(1, SEEN + 1)]
    return [(0.0, BrokerUp()), (0.1, StatusArrived(status())), *seen, (SEEN + 0.1, EventArrived(event(SEEN)))]


STORIES: dict[str, Callable[[], tuple[list[tuple[float, Message]], float]]] = {
    "live": lambda: (frames(), SEEN + 0.4),
    "stale": lambda: (frames(), SEEN + 5.0),
    "daemon-down": lambda: ([*frames(), (SEEN + 2.0, StatusArrived(status("offline")))], SEEN + 8.0),
    "broker-down": lambda: ([*frames(), (SEEN + 2.0, BrokerDown("connection refused", 4.0))], SEEN + 3.0),
    "nothing": lambda: ([(0.5, BrokerDown("connection refused", 4.0))], 1.0),
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("story", STORIES)
async def test_screen(story: str, size: tuple[int, int]) -> None:
    lines, end = STORIES[story]()
    clock = Still()
    kept = KEPT / f"{story}-{size[0]}x{size[1]}.txt"
    app = LlmosTop(Script(clock, lines, end), UNICODE, clock=clock.monotonic, wall=clock.wall)
    async with app.run_test(size=size) as pilot:
        while clock.now != end:
            await pilot.pause(0.01)
        app.look()
        for _ in range(3):  # another form is laid out, its widgets learn their widths, they are painted
            await pilot.pause()
        if os.environ.get("LLMOS_KEEP_SCREENS") == "1":
            kept.write_text(screen_text(app) + "\n", encoding="utf-8")
        wanted = kept.read_text(encoding="utf-8")
        with suppress(TimeoutError):  # what differs is shown below
            async with asyncio.timeout(10):
                while screen_text(app) + "\n" != wanted:
                    await pilot.pause(0.05)
        assert screen_text(app) + "\n" == wanted
