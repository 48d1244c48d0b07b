"""The whole monitor on a made-up terminal: real broker, messages and keys, and a real daemon's HTTP side to act on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from llmos_top.app import LlmosTop
from llmos_top.feed import Feed
from llmos_top.glyphs import ASCII, UNICODE
from llmos_top.keys import KEYS
from llmos_top.widgets.detail import Detail
from llmos_top.widgets.dialogs import Ask, Choose, Confirm, Help
from llmosd.application.endpoint import Endpoint
from tests.api.api_house import House, open_house
from tests.tui.conftest import LocalBroker, speaking
from tests.tui.desk import Desk, Still, desk
from tests.tui.frames import row


def ids(*numbers: int) -> list[str]:
    return [row(number).id for number in numbers]


# ---------------------------------------------------------------- painting


async def test_a_live_daemon_is_on_the_screen(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        panels = ("running   7/8", "used ", "first token", "out ", "cpu ", "M/M/1 predicts", "Amdahl")
        await top.shows("● LIVE", node, *panels, *ids(0, 10))
        await top.frame(2, requests=3)
        await top.shows(ids(0)[0], but=(ids(10)[0],))


async def test_an_event_reaches_the_last_line(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.daemon.event(1, "pool is nearly full \x1b[31m")
        await top.shows("W pool is nearly full")


async def test_every_size_shows_the_requests(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        for size in ((80, 24), (60, 15), (40, 10), (20, 5), (300, 90)):
            await top.pilot.resize_terminal(*size)
            await top.shows(ids(0)[0][-3:])


async def test_ascii_means_ascii(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (120, 40), ASCII) as top:
        await top.shows("* LIVE")
        await top.until(lambda: top.text.isascii())


async def test_growing_and_shrinking_changes_the_form(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (80, 24)) as top:
        assert "Utilisation" not in top.text
        await top.pilot.resize_terminal(120, 40)
        await top.shows("Utilisation")
        await top.pilot.resize_terminal(60, 12)
        await top.shows("run ", but=("Utilisation",))


# ---------------------------------------------------------------- trouble


async def test_a_last_will_is_said_and_recovered_from(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.daemon.status("offline")
        await top.shows("✕ DAEMON DOWN", "llmosd start", "last known", ids(0)[0])
        await top.press("x")
        await top.shows("not possible now")
        assert not isinstance(top.app.screen, Confirm)
        await top.daemon.status()
        await top.frame(2)
        await top.shows("● LIVE")


async def test_a_lost_broker_is_said_and_recovered_from(own_broker: LocalBroker, node: str) -> None:
    clock = Still()
    app = LlmosTop(Feed(own_broker.endpoint, node), UNICODE, node=node, clock=clock.monotonic, wall=clock.wall)
    async with app.run_test(size=(80, 24)) as pilot:
        async with speaking(own_broker, node) as daemon:
            top = Desk(app, pilot, daemon)
            await top.until(lambda: app.state.broker == "up")
            await top.frame(1)
        own_broker.stop()
        await top.shows("✕ BROKER DOWN", "llmosd start", ids(0)[0])
        own_broker.start()
        async with speaking(own_broker, node) as daemon:
            top.daemon = daemon
            await top.until(lambda: app.state.broker == "up")
            await top.frame(2)
            await top.shows("● LIVE")


async def test_nothing_at_all_is_no_empty_table(node: str) -> None:
    app = LlmosTop(Feed(Endpoint("127.0.0.1", 1), node), UNICODE, node=node)
    async with app.run_test(size=(80, 24)) as pilot:
        top = Desk(app, pilot, None)  # type: ignore[arg-type]
        await top.shows("connection refused", "Nothing to show yet", "llmosd start")


# ---------------------------------------------------------------- keys that look


async def moves(top: Desk) -> None:
    await top.press("down", "j", "down")
    await top.selects(ids(3)[0])
    await top.press("up", "k")
    await top.selects(ids(1)[0])


async def jumps(top: Desk) -> None:
    await top.press("G")
    await top.selects(ids(10)[0])
    await top.press("g")
    await top.selects(ids(0)[0])
    await top.press("end", "home")
    await top.selects(ids(0)[0])


async def pages(top: Desk) -> None:
    await top.frame(2, requests=50)
    await top.shows("rows 1 to 15")
    await top.press("pagedown")
    sixteenth = top.table.items[15].key
    await top.selects(sixteenth)
    await top.shows("rows 2 to 16", sixteenth)
    await top.press("pageup")
    await top.selects(top.table.items[0].key)


async def sorts(top: Desk) -> None:
    await top.press("down")
    (kept,) = ids(1)
    await top.selects(kept)
    await top.press("s", "s", "s")
    await top.shows("sort TOKENS ▼")
    tokens = [item.row.completion_tokens for item in top.table.items]
    assert tokens == sorted(tokens, reverse=True)
    await top.selects(kept)


async def freezes(top: Desk) -> None:
    await top.press("s", "f")
    await top.shows("sort AGE", "order frozen")
    before = [item.key for item in top.table.items]
    shuffled = tuple(replace(row(n), age_s=float(n)) for n in range(11))
    await top.frame(2, requests=shuffled)
    assert [item.key for item in top.table.items] == before and "order frozen" in top.text
    await top.press("f")
    await top.lacks("order frozen")
    assert [item.key for item in top.table.items] != before


async def pauses(top: Desk) -> None:
    await top.press("p")
    await top.shows("PAUSED")
    await top.frame(2, requests=3)
    assert "PAUSED" in top.text and ids(10)[0] in top.text
    await top.press("p")
    await top.lacks("PAUSED", ids(10)[0])


async def helps(top: Desk) -> None:
    await top.press("question_mark")
    await top.shows(*(key.help for key in KEYS[:6]))
    await top.press("escape")
    await top.closes()
    await top.press("f1")
    await top.until(lambda: isinstance(top.app.screen, Help))
    await top.press("q")
    await top.closes()
    assert top.app.is_running


async def filters(top: Desk) -> None:
    await top.frame(2, requests=tuple(row(n, user="ada" if n < 3 else "bob") for n in range(11)))
    await top.press("slash")
    await top.asks(Ask)
    await top.press(*"user=ada", "enter")
    await top.shows("Requests 3 of 11", "filter user=ada", *ids(0, 2), but=(ids(3)[0],))
    await top.press("slash")
    await top.asks(Ask)
    await top.press(*"user=eve", "enter")
    await top.shows("No request is like this", but=(ids(0)[0],))
    await top.press("slash")
    await top.asks(Ask)
    await top.press(*"size=1", "enter")
    await top.shows("no field size")
    await top.press("slash")
    await top.asks(Ask)
    await top.press("backspace", "enter")
    await top.shows("Requests 11", ids(10)[0])


async def grows(top: Desk) -> None:
    sessions = ("chat-7", "chat-7", "")
    requests = tuple(row(n, user="ada" if n < 3 else "bob", session=sessions[n % 3] if n < 3 else "") for n in range(6))
    await top.frame(2, requests=requests)
    await top.press("t")
    await top.shows("all (6)", "  ada (3)", "    chat-7 (2)", f"      {ids(0)[0]}", f"    {ids(2)[0]}", "  bob (3)")
    await top.selects(ids(0)[0])
    await top.press("t")
    await top.lacks("all (6)", "chat-7 (2)")
    await top.selects(ids(0)[0])


async def retries(top: Desk) -> None:
    feed = top.app._source
    assert isinstance(feed, Feed)
    await top.press("ctrl+r")
    await top.until(feed.retry.is_set)


async def quits(top: Desk) -> None:
    await top.press("q")
    await top.until(lambda: not top.app.is_running)


LOOKS = {
    "move": (moves, jumps),
    "page": (pages,),
    "sort": (sorts,),
    "freeze": (freezes,),
    "pause": (pauses,),
    "filter": (filters,),
    "tree": (grows,),
    "help": (helps,),
    "retry": (retries,),
    "quit": (quits,),
}
ACTS = {"cancel", "detail", "policy", "renice", "suspend"}  # below, with a daemon to act on


def test_every_key_has_a_test() -> None:
    assert {key.action.split("(")[0] for key in KEYS} == set(LOOKS) | ACTS


@pytest.mark.parametrize("look", [look for looks in LOOKS.values() for look in looks])
async def test_a_key_that_looks(broker: LocalBroker, node: str, look: Callable[[Desk], Any]) -> None:
    async with desk(broker, node) as top:
        await look(top)


async def test_the_selection_follows_its_request_not_its_place(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node) as top:
        await top.press("down", "down", "down")
        await top.selects(ids(3)[0])
        await top.frame(2, requests=tuple(row(n) for n in (3, 5, 8)))
        await top.selects(ids(3)[0])
        await top.frame(3, requests=tuple(row(n) for n in (5, 8)))
        await top.selects(ids(5)[0])


async def test_the_mouse_selects_rows_and_sorts_by_titles(broker: LocalBroker, node: str) -> None:
    async with desk(broker, node, (80, 24)) as top:
        place = next(y for y, each in enumerate(top.text.splitlines()) if ids(4)[0] in each)
        await top.pilot.click(offset=(10, place))
        await top.selects(ids(4)[0])
        title = top.text.splitlines()[place - 5]
        await top.pilot.click(offset=(title.index("OUT"), place - 5))
        await top.shows("sort TOKENS")


# ---------------------------------------------------------------- keys that act


@asynccontextmanager
async def desk_with_requests(broker: LocalBroker, node: str, **options: Any) -> AsyncIterator[tuple[Desk, House]]:
    """Three requests that run slowly in a real daemon, and the Frame that shows them."""
    async with open_house() as house:
        house.executor.pause_s = 0.1  # they last for a minute
        waiting = [
            asyncio.create_task(
                house.http.post(
                    "/v1/completions",
                    json={"model": "letters", "prompt": "x", "max_tokens": 400, "user": "ada" if number < 2 else "bob"},
                    headers={"X-Request-Id": f"job-{number}"},
                )
            )
            for number in range(3)
        ]
        try:
            await house.until(lambda: len(house.recorded) == 3)
            rows = tuple(row(n, id=f"job-{n}", nice=0, user="ada" if n < 2 else "bob") for n in range(3))
            async with desk(broker, node, **options) as top:
                await top.frame(2, requests=rows, http=house.url)
                await top.shows("job-0", "job-2")
                yield top, house
        finally:
            house.executor.pause_s = 0.0
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_x_cancels_the_selected_request_once_confirmed(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("down", "x")
        await top.asks(Confirm)
        await top.shows("Cancel request job-1")
        await top.press("y")
        await top.shows("cancelled job-1")
        assert (await house.service.get("job-1")).state == "cancelled"
        assert (await house.service.get("job-0")).state != "cancelled"


async def test_every_way_out_but_yes_means_no(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        for no in ("enter", "n", "escape", "q"):
            await top.press("x")
            await top.asks(Confirm)
            await top.press(no)
            await top.closes()
        assert top.app.is_running
        assert (await house.service.get("job-0")).state != "cancelled"


async def test_the_dialog_keeps_its_request_while_rows_move(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("x")
        await top.asks(Confirm)
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
        await top.press("x")
        await top.asks(Confirm)
        await top.press("y")
        await top.shows("no live request long-gone")


async def test_keys_act_on_all_requests_of_a_user(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("t")
        await top.shows("all (3)", "ada (2)", "bob (1)")
        await top.press("g", "down")
        await top.selects("user ada")
        await top.press("right_square_bracket")
        await top.shows("nice of 2 requests of ada is now 1")
        await top.press("x")
        await top.asks(Confirm)
        await top.shows("Cancel 2 requests of ada?")
        await top.press("y")
        await top.shows("cancelled 2 requests of ada")
        views = [await house.service.get(f"job-{number}") for number in range(3)]
        assert [(view.state == "cancelled", view.nice) for view in views] == [(True, 1), (True, 1), (False, 0)]


async def test_keys_act_on_what_the_filter_shows(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("slash")
        await top.asks(Ask)
        await top.press(*"user=bob", "enter")
        await top.lacks("job-0")
        await top.press("t", "g")
        await top.selects("all")
        await top.press("z")
        await top.shows("suspended 1 request")
        states = [(await house.service.get(f"job-{number}")).state == "suspended" for number in range(3)]
        assert states == [False, False, True]


async def test_enter_shows_one_request_and_where_its_time_went(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("enter")
        await top.until(lambda: isinstance(top.app.screen, Detail))
        await top.shows("job-0", "user ada", "first token", "decode", "To shorten it:")
        await house.http.delete("/v1/requests/job-0")
        await top.shows("cancelled")
        await top.press("escape")
        await top.closes()
        await top.frame(3, requests=(row(0, id="long-gone"),), http=house.url)
        await top.press("enter")
        await top.shows("long-gone", "no request")


async def test_o_changes_the_policy(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node) as (top, house):
        await top.press("o")
        await top.asks(Choose)
        await top.shows("Policy that orders requests", "fcfs", "fair")
        await top.press("home", "enter")
        await top.shows("the policy is now fcfs")
        assert house.service.stats is not None
        await house.until(lambda: house.service.stats.policy == "fcfs")


async def test_readonly_changes_nothing(broker: LocalBroker, node: str) -> None:
    async with desk_with_requests(broker, node, readonly=True) as (top, house):
        await top.press("x")
        await top.shows("read-only")
        assert not isinstance(top.app.screen, Confirm)
        await top.press("right_square_bracket")
        assert (await house.service.get("job-0")).nice == 0
