"""A monitor in front of somebody, at a clock that stands still: how slow the machine is ages nothing on the screen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from textual.pilot import Pilot

from llmos_top.app import LlmosTop
from llmos_top.feed import Feed
from llmos_top.glyphs import UNICODE
from llmos_top.widgets.request_table import RequestTable
from tests.tui.conftest import LocalBroker, Publisher, speaking
from tests.tui.frames import AT
from tests.tui.screen_text import screen_text


@dataclass
class Still:
    """A clock that stands where it is put; monotonic seconds count from the first Frame's time."""

    now: float = 0.0

    def wall(self) -> float:
        return AT + self.now

    def monotonic(self) -> float:
        return self.now


@dataclass
class Desk:
    """A monitor, and the daemon it watches. A screen is painted when it is painted: what it shows is waited for."""

    app: LlmosTop
    pilot: Pilot[None]
    daemon: Publisher

    @property
    def table(self) -> RequestTable:
        return self.app.screen_stack[0].query_one(RequestTable)

    @property
    def text(self) -> str:
        return screen_text(self.app)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  the screen changes when it changes
                await asyncio.sleep(0.02)

    async def shows(self, *words: str, but: tuple[str, ...] = ()) -> None:
        """Wait for a screen with all of `words` and none of `but`."""

        def shown(text: str) -> bool:
            return all(each in text for each in words) and not any(each in text for each in but)

        try:
            await self.until(lambda: shown(self.text))
        except TimeoutError:
            raise AssertionError(f"not all of {words} without {but} on\n{self.text}") from None

    async def lacks(self, *words: str) -> None:
        """Wait until none of `words` is on the screen."""
        await self.shows(but=words)

    async def selects(self, id: str) -> None:
        """Wait until the cursor is on this request, or branch of the tree."""
        await self.until(lambda: self.table.selected is not None and self.table.selected.key == id)

    async def asks(self, dialog: type) -> None:
        """Wait until such a dialog is open and takes keys."""
        await self.until(lambda: isinstance(self.app.screen, dialog) and self.app.focused is not None)

    async def closes(self) -> None:
        """Wait until no dialog is open."""
        await self.until(lambda: len(self.app.screen_stack) == 1)

    async def frame(self, seq: int, **changes: Any) -> None:
        """Publish a Frame and wait until the widgets have it."""
        await self.daemon.frame(seq, **changes)
        await self.until(lambda: self.app.state.frame is not None and self.app.state.frame.seq == seq)
        self.app.paint()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)


@asynccontextmanager
async def desk(
    broker: LocalBroker, node: str, size: tuple[int, int] = (120, 40), glyphs: Any = UNICODE, **options: Any
) -> AsyncIterator[Desk]:
    """With the first Frame on its screen."""
    clock = Still()
    app = LlmosTop(Feed(broker.endpoint, node), glyphs, node=node, clock=clock.monotonic, wall=clock.wall, **options)
    async with app.run_test(size=size) as pilot, speaking(broker, node) as daemon:
        made = Desk(app, pilot, daemon)
        await made.until(lambda: app.state.broker == "up")
        await daemon.status()
        await made.frame(1)
        await made.shows(" LIVE", *(item.key for item in made.table.items[:5]))
        yield made
