"""The whole monitor on a made-up terminal: real broker, messages and keys, and a real daemon's HTTP side to act on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from textual.pilot import Pilot

from llmos_top.app import LlmosTop
from llmos_top.feed import Feed
from llmos_top.glyphs import ASCII, UNICODE
from llmos_top.keys import KEYS
from llmos_top.widgets.dialogs import Confirm, Help
from llmos_top.widgets.request_table import RequestTable
from tests.api.api_house import House, open_house
from tests.tui.conftest import LocalBroker, Publisher, speaking
from tests.tui.frames import row
from tests.tui.screen_text import screen_text


@dataclass
class Desk:
    """A monitor in front of somebody, and the daemon it watches."""

    app: LlmosTop
    pilot: Pilot[None]
    daemon: Publisher

    @property
    def table(self) -> RequestTable:
        return self.app.screen_stack[0].query_one(RequestTable)

    @property
    def selected(self) -> str:
        assert self.table.selected is not None
        return self.table.selected.id

    @property
    def text(self) -> str:
        return screen_text(self.app)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await self.pilot.pause(0.05)

    async def shows(self, words: str) -> None:
        await self.until(lambda: words in self.text)

    async def frame(self, seq: int, **changes: Any) -> None:
        """Publish a Frame and wait until it is on the screen."""
        await self.daemon.frame(seq, **changes)
        await self.until(lambda: self.app.state.frame is not None and self.app.state.frame.seq == seq)
        self.app.paint()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()


@asynccontextmanager
async def desk(
    broker: LocalBroker, node: str, size: tuple[int, int] = (120, 40), glyphs: Any = UNICODE, **options: Any
) -> AsyncIterator[Desk]:
    app = LlmosTop(Feed(broker.endpoint, node), glyphs, node=node, **options)
    async with app.run_test(size=size) as pilot, speaking(broker, node) as daemon:
        made = Desk(app, pilot, daemon)
        await made.until(lambda: app.state.broker == "up")
        await daemon.status()
        await made.frame(1)
        yield made


def ids(*numbers: int) -> list[str]:
    return [row(number).id for number in numbers]


# ---------------------------------------------------------------- painting


async def test_a_live_daemon_is_on_the_screen(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.shows("● LIVE")
        for words in (
            node,
            "running   7/8",
            "used ",
            "first token",
            "out ",
            "cpu ",
            "M/M/1 predicts",
            "Amdahl",
            *ids(0, 10),
        ):
            assert words in top.text
        await top.frame(2, requests=3)
        assert ids(10)[0] not in top.text


async def test_an_event_reaches_the_last_line(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.daemon.event(1, "pool is nearly full \x1b[31m")
        await top.shows("W pool is nearly full")


async def test_every_size_shows_the_requests(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        for size in ((80, 24), (60, 15), (40, 10), (20, 5), (300, 90)):
            await top.pilot.resize_terminal(*size)
            await top.shows(ids(0)[0][-8:])


async def test_ascii_means_ascii(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (120, 40), ASCII) as top:
        await top.shows("* LIVE")
        assert [c for c in top.text if not c.isascii()] == []


async def test_growing_and_shrinking_changes_the_form(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (80, 24)) as top:
        assert "Utilisation" not in top.text
        await top.pilot.resize_terminal(120, 40)
        await top.shows("Utilisation")
        await top.pilot.resize_terminal(60, 12)
        await top.until(lambda: "Utilisation" not in top.text and "run " in top.text)


# ---------------------------------------------------------------- trouble


async def test_a_last_will_is_said_and_recovered_from(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.daemon.status("offline")
        await top.shows("✕ DAEMON DOWN")
        assert "llmosd start" in top.text and "last known" in top.text and ids(0)[0] in top.text
        await top.press("x")
        await top.shows("not possible now")
        assert not isinstance(top.app.screen, Confirm)
        await top.daemon.status()
        await top.frame(2)
        await top.shows("● LIVE")


async def test_a_lost_broker_is_said_and_recovered_from(own_broker: LocalBroker, node: str) -> None:
    app = LlmosTop(Feed(own_broker.endpoint, node), UNICODE, node=node)
    async with app.run_test(size=(80, 24)) as pilot:
        async with speaking(own_broker, node) as daemon:
            top = Desk(app, pilot, daemon)
            await top.until(lambda: app.state.broker == "up")
            await top.frame(1)
        own_broker.stop()
        await top.shows("✕ BROKER DOWN")
        assert "llmosd start" in top.text and ids(0)[0] in top.text
        own_broker.start()
        async with speaking(own_broker, node) as daemon:
            top.daemon = daemon
            await top.until(lambda: app.state.broker == "up")
            await top.frame(2)
            await top.shows("● LIVE")


async def test_nothing_at_all_is_no_empty_table(node: str) -> None:
    from llmosd.application.endpoint import Endpoint

    app = LlmosTop(Feed(Endpoint("127.0.0.1", 1), node), UNICODE, node=node)
    async with app.run_test(size=(80, 24)) as pilot:
        top = Desk(app, pilot, None)  # type: ignore[arg-type]
        await top.shows("connection refused")
        assert "Nothing to show yet" in top.text and "llmosd start" in top.text


# ---------------------------------------------------------------- keys that look


async def moves(top: Desk) -> None:
    await top.press("down", "j", "down")
    assert top.selected == ids(3)[0]
    await top.press("up", "k")
    assert top.selected == ids(1)[0]


async def jumps(top: Desk) -> None:
    await top.press("G")
    assert top.selected == ids(10)[0]
    await top.press("g")
    assert top.selected == ids(0)[0]
    await top.press("end", "home")
    assert top.selected == ids(0)[0]


async def pages(top: Desk) -> None:
    await top.frame(2, requests=50)
    await top.press("pagedown")
    assert top.table.page == top.table.rows.index(top.table.selected)
    await top.shows(top.selected)
    assert "rows 2 to 16" in top.text
    await top.press("pageup")
    assert top.selected == top.table.rows[0].id


async def sorts(top: Desk) -> None:
    await top.press("down")
    kept = top.selected
    await top.press("s", "s", "s")
    assert "sort TOKENS ▼" in top.text
    tokens = [r.completion_tokens for r in top.table.rows]
    assert tokens == sorted(tokens, reverse=True) and top.selected == kept


async def freezes(top: Desk) -> None:
    await top.press("s", "f")
    before = [r.id for r in top.table.rows]
    shuffled = tuple(replace(row(n), age_s=float(n)) for n in range(11))
    await top.frame(2, requests=shuffled)
    assert [r.id for r in top.table.rows] == before and "order frozen" in top.text
    await top.press("f")
    assert [r.id for r in top.table.rows] != before and "order frozen" not in top.text


async def pauses(top: Desk) -> None:
    await top.press("p")
    await top.frame(2, requests=3)
    assert "PAUSED" in top.text and ids(10)[0] in top.text
    await top.press("p")
    assert "PAUSED" not in top.text and ids(10)[0] not in top.text


async def helps(top: Desk) -> None:
    await top.press("question_mark")
    assert isinstance(top.app.screen, Help)
    assert all(key.help in top.text for key in KEYS[:6])
    await top.press("escape")
    assert not isinstance(top.app.screen, Help)
    await top.press("f1", "q")
    assert not isinstance(top.app.screen, Help) and top.app.is_running


async def retries(top: Desk) -> None:
    feed = top.app._source
    assert isinstance(feed, Feed)
    await top.press("ctrl+r")
    assert feed.retry.is_set()


async def quits(top: Desk) -> None:
    await top.press("q")
    await top.until(lambda: not top.app.is_running)


LOOKS = {
    "move": (moves, jumps),
    "page": (pages,),
    "sort": (sorts,),
    "freeze": (freezes,),
    "pause": (pauses,),
    "help": (helps,),
    "retry": (retries,),
    "quit": (quits,),
}
ACTS = {"cancel", "renice", "suspend"}  # below, with a daemon to act on


def test_every_key_has_a_test() -> None:
    assert {key.action.split("(")[0] for key in KEYS} == set(LOOKS) | ACTS


@pytest.mark.parametrize("look", [look for looks in LOOKS.values() for look in looks])
async def test_a_key_that_looks(broker: LocalBroker, node: str, look: Callable[[Desk], Any]) -> None:
    async with desk(broker, node) as top:
        await look(top)


async def test_the_selection_follows_its_request_not_its_place(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.press("down", "down", "down")
        await top.frame(2, requests=tuple(row(n) for n in (3, 5, 8)))
        assert top.selected == ids(3)[0]
        await top.frame(3, requests=tuple(row(n) for n in (5, 8)))
        assert top.selected == ids(5)[0]


async def test_the_mouse_selects_rows_and_sorts_by_titles(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (80, 24)) as top:
        place = next(y for y, each in enumerate(top.text.splitlines()) if ids(4)[0] in each)
        await top.pilot.click(offset=(10, place))
        assert top.selected == ids(4)[0]
        title = top.text.splitlines()[place - 5]
        await top.pilot.click(offset=(title.index("OUT"), place - 5))
        assert "sort TOKENS" in top.text


# ---------------------------------------------------------------- keys that act


@asynccontextmanager
async def desk_with_requests(broker: LocalBroker, node: str, **options: Any) -> AsyncIterator[tuple[Desk, House]]:
    """Three requests that run slowly in a real daemon, and the Frame that shows them."""
    async with open_house() as house:
        house.executor.pause_s = 0.05
        waiting = [
            asyncio.create_task(
                house.http.post(
                    "/v1/completions",
                    json={"model": "letters", "prompt": "x", "max_tokens": 400},
                    headers={"X-Request-Id": f"job-{number}"},
                )
            )
            for number in range(3)
        ]
        try:
            await house.until(lambda: len(house.recorded) == 3)
            rows = tuple(replace(row(n), id=f"job-{n}", nice=0) for n in range(3))
            async with desk(broker, node, **options) as top:
                await top.frame(2, requests=rows, http=house.url)
                yield top, house
        finally:
            house.executor.pause_s = 0.0
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_x_cancels_the_selected_request_once_confirmed(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("down", "x")
        assert isinstance(top.app.screen, Confirm) and "job-1" in top.text
        await top.press("y")
        await top.shows("cancelled job-1")
        assert (await house.service.get("job-1")).state == "cancelled"
        assert (await house.service.get("job-0")).state != "cancelled"


async def test_every_way_out_but_yes_means_no(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        for no in ("enter", "n", "escape", "q"):
            await top.press("x")
            assert isinstance(top.app.screen, Confirm)
            await top.press(no)
            assert not isinstance(top.app.screen, Confirm) and top.app.is_running
        assert (await house.service.get("job-0")).state != "cancelled"


async def test_the_dialog_keeps_its_request_while_rows_move(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("x")
        await top.frame(3, requests=tuple(replace(row(n), id=f"job-{n}") for n in (2, 1)), http=house.url)
        await top.press("tab", "enter")
        await top.shows("cancelled job-0")
        assert (await house.service.get("job-0")).state == "cancelled"


@pytest.mark.parametrize(("keys", "nice"), [("]]", 2), ("[[[", -3), ("][", 0)])
async def test_brackets_renice(broker: LocalBroker, node: str, keys: str, nice: int) -> None:
    names = {"[": "left_square_bracket", "]": "right_square_bracket"}
    async with desk_with_requests(broker, node) as (top, house):
        await top.press(*(names[key] for key in keys))
        await top.shows(f"nice of job-0 is now {nice}")
        assert (await house.service.get("job-0")).nice == nice


async def test_z_suspends_and_lets_go_on(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("z")
        await top.shows("suspended job-0")
        assert (await house.service.get("job-0")).state == "suspended"
        await top.frame(3, requests=(replace(row(0), id="job-0", state="suspended"),), http=house.url)
        await top.press("z")
        await top.shows("resumed job-0")
        assert (await house.service.get("job-0")).state != "suspended"


async def test_the_daemons_own_words_are_shown_when_it_refuses(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.frame(3, requests=(replace(row(1), id="long-gone"),), http=house.url)
        await top.press("x", "y")
        await top.shows("no live request long-gone")


async def test_readonly_changes_nothing(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node, readonly=True) as (top, house):
        await top.press("x")
        await top.shows("read-only")
        assert not isinstance(top.app.screen, Confirm)
        await top.press("right_square_bracket")
        assert (await house.service.get("job-0")).nice == 0
