"""The monitor without a screen: one look, or one JSON Frame a line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llmos_top import compact, headline
from llmos_top.feed import Feed
from llmos_top.glyphs import Glyphs
from llmos_top.headline import Where
from llmos_top.liveness import liveness
from llmos_top.messages import FrameArrived, Message
from llmos_top.rows import Order, arrange, columns_for, header_line, row_line
from llmos_top.state import Broker, Source, State, reduce
from llmos_top.text import Line, plain, to_ascii
from llmosd.wire import RequestRow

LOOK_S = 2.5
LIVE, DAEMON_DOWN, BROKER_DOWN, STALE = 0, 3, 4, 5


async def look(feed: Feed) -> State:
    """What is known as soon as a live Frame or a certain answer came, else 2.5 s after the broker took us in."""
    state = State(node=feed.node, pinned=feed.node is not None, broker_since=time.monotonic())
    answered, decided = asyncio.Event(), asyncio.Event()

    def deliver(message: Message) -> None:
        nonlocal state
        state = reduce(state, message, time.monotonic())
        if state.broker is not Broker.CONNECTING:
            answered.set()
        if _certain(state):
            decided.set()

    following = asyncio.create_task(feed.follow(deliver), name="feed")
    try:
        await answered.wait()  # bounded by the feed's own time to connect
        async with asyncio.timeout(LOOK_S):
            await decided.wait()
    except TimeoutError:
        pass
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    if state.broker is Broker.DOWN:
        await feed.read_database(deliver)
    return state


def _certain(state: State) -> bool:
    """Whether waiting longer can change nothing: an answer of the broker's, and the Frame that goes with it."""
    if state.broker is Broker.UP:
        return exit_code(state) == LIVE or (exit_code(state) == DAEMON_DOWN and state.frame is not None)
    return state.broker is Broker.DOWN


def exit_code(state: State) -> int:
    """Of one look: a Frame that came while looking is live, a retained one is not."""
    if state.broker is not Broker.UP:
        return BROKER_DOWN
    if state.source is Source.LIVE:
        return LIVE
    offline = state.status is not None and state.status.state == "offline"
    return DAEMON_DOWN if offline or (state.frame is None and state.status is None) else STALE


async def stream(feed: Feed, write: Callable[[bytes], None]) -> None:
    """Write every fresh Frame as received, until cancelled."""

    def deliver(message: Message) -> None:
        if isinstance(message, FrameArrived) and not message.retained:
            write(message.raw)

    await feed.follow(deliver)


def report(state: State, where: Where, width: int, glyphs: Glyphs) -> list[str]:
    """The overview as plain text, for a pipe or a log."""
    live = liveness(state, time.monotonic())
    lines = [headline.header(state, live, time.time(), width, glyphs, paused=False)]
    if banner := headline.banner(state, live, where, width, glyphs):
        lines.append(banner)
    if state.frame is not None:
        lines += compact.compact(state, state.frame, width, glyphs)
    rows = arrange(state.frame.requests, Order()) if state.frame else ()
    lines += _table(rows, width, glyphs) if rows else headline.advice(state, live, where)
    texts = [plain(each).rstrip() for each in lines]
    return [to_ascii(text) for text in texts] if glyphs.ascii else texts


def _table(rows: tuple[RequestRow, ...], width: int, glyphs: Glyphs) -> list[Line]:
    columns = columns_for(width, rows)
    return [header_line(columns, Order(), glyphs), *(row_line(r, columns, glyphs, selected=False) for r in rows)]
