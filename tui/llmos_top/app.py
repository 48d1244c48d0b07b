"""The monitor on a screen: messages change the state as they come, a tick paints it, keys act on requests by id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.css.query import NoMatches
from textual.widgets import Footer

from llmos_top import compact, headline, panels
from llmos_top.glyphs import Glyphs
from llmos_top.headline import Where
from llmos_top.keys import KEYS
from llmos_top.layout import Form, form_for, summary_lines
from llmos_top.rows import SORTS, Order, arrange
from llmos_top.state import Life, Liveness, Message, State, liveness, reduce
from llmos_top.text import Line, clean, line
from llmos_top.widgets.dialogs import Confirm, Help
from llmos_top.widgets.lines import Lines
from llmos_top.widgets.request_table import RequestTable
from llmosd.application.client import DEFAULT_URL, AsyncClient
from llmosd.errors import LlmosError
from llmosd.types import NICE_MAX, NICE_MIN

LOOK_S = 0.25  # how often the state is looked at; it is painted when a Frame came, and the header once a second
NOTE_S = 5.0
ECHO_S = 2.5  # by then a Frame shows what was changed


class Source(Protocol):
    """What delivers messages; `retry` asks it to connect now."""

    async def follow(self, deliver: Callable[[Message], None]) -> None: ...
    def retry_now(self) -> None: ...


class LlmosTop(App[None]):
    """`http` None: requests are acted on where the Frame says. Clocks are given so that tests can stand still."""

    CSS_PATH = "app.tcss"
    TITLE = "llmos-top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key.keys, key.action, key.footer or key.help, show=bool(key.footer), key_display=key.shown.split()[0])
        for key in KEYS
    ]

    def __init__(
        self,
        source: Source,
        where: Where,
        glyphs: Glyphs,
        *,
        node: str | None = None,
        http: str | None = None,
        readonly: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._source, self._where, self._glyphs = source, where, glyphs
        self._http, self._readonly = http, readonly
        self._clock, self._wall = clock, wall
        self.state = State(node=node, pinned=node is not None, broker_since=clock())
        self.order = Order()
        self._held: State | None = None  # what stays on screen while paused
        self._painted: State | None = None
        self._painted_second = -1
        self._note: tuple[str, str, float] | None = None  # text, role, until
        self._nice: dict[str, tuple[int, float]] = {}  # asked for, and when: Frames show it a moment later
        self._acting = asyncio.Lock()  # actions happen in the order of their keys

    # ---------------------------------------------------------------- screen

    def compose(self) -> ComposeResult:
        def lines(id: str, title: str = "") -> Lines:
            return Lines(id=id, title=title, ascii=self._glyphs.ascii)

        yield lines("header")
        yield lines("banner")
        with Container(id="panels"):
            with Horizontal(id="top"):
                yield lines("scheduler", "Scheduler")
                yield lines("pool", "KV pool")
                yield lines("latency", "Latency")
            with Horizontal(id="middle"):
                yield lines("throughput", "Throughput, tokens/s")
                yield lines("utilisation", "Utilisation")
            yield lines("queueing", "Queueing")
        yield lines("compact")
        yield RequestTable(self._glyphs, id="requests")
        yield lines("events")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.screen.set_class(self._glyphs.ascii, "ascii")
        self.run_worker(self._source.follow(self.deliver), name="feed", exclusive=True)
        self.set_interval(LOOK_S, self.look)
        self.paint()

    def on_resize(self) -> None:
        self.call_after_refresh(self.paint)

    # ---------------------------------------------------------------- state → screen

    def deliver(self, message: Message) -> None:
        """Take a message in; it is painted at the next look."""
        self.state = reduce(self.state, message, self._clock())

    def look(self) -> None:
        """Paint what changed: everything after a message, else the clock and ages once a second."""
        if self.state is not self._painted or int(self._wall()) != self._painted_second:
            self.paint()

    def paint(self) -> None:
        """Bring the screen up to date."""
        self._painted, self._painted_second = self.state, int(self._wall())
        shown = self._held or self.state
        live = liveness(self.state, self._clock())
        try:
            self._paint_frame(shown, live)
        except NoMatches:  # a dialog is on top, or the screen is being built or torn down
            return

    def _paint_frame(self, shown: State, live: Liveness) -> None:
        root = self.screen_stack[0]
        width, height = self.size
        form = form_for(width, height)
        for each in Form:
            root.set_class(each is form, each.value)
        root.set_class(shown.frame is None, "blank")
        root.set_class(live.life not in (Life.LIVE, Life.VIA_DB), "old")
        self._lines("header").show(
            [headline.header(self.state, live, self._wall(), width, self._glyphs, paused=self._held is not None)]
        )
        banner = headline.banner(self.state, live, self._where, width, self._glyphs)
        root.set_class(banner is not None, "warned")
        self._lines("banner").show([banner] if banner else [])
        if shown.frame is not None:
            if form is Form.FULL:
                self._paint_panels(shown)
            else:
                summary = self._lines("compact")
                summary.styles.height = count = summary_lines(form, height)
                summary.show(compact.compact(shown, shown.frame, width, self._glyphs)[:count])
        self._paint_table(shown, live)
        self._lines("events").show([self._events_line(shown, width)])

    def _paint_panels(self, shown: State) -> None:
        frame, glyphs = shown.frame, self._glyphs
        assert frame is not None
        for id, title, paint in (
            ("scheduler", f"Scheduler {clean(frame.queue.policy)}", panels.scheduler),
            ("pool", f"KV pool {frame.pages.total} pages × {frame.pages.page_tokens} tokens", panels.pool),
            ("latency", f"Latency, last {frame.latency.window_s:.0f} s", panels.latency),
            ("throughput", "Throughput, tokens/s", panels.throughput),
            ("utilisation", "Utilisation", panels.utilisation),
            ("queueing", _queueing_title(shown), panels.queueing),
        ):
            widget = self._lines(id)
            widget.retitle(title)
            widget.show(paint(shown, frame, widget.size.width, glyphs))

    def _paint_table(self, shown: State, live: Liveness) -> None:
        rows = arrange(shown.frame.requests, self.order) if shown.frame else ()
        table = self._table
        table.show(rows, self.order, headline.advice(shown, live, self._where))
        title = headline.table_title(shown.frame, self.order, self._glyphs)
        if table.border_title != title:
            table.border_title = title

    def _events_line(self, shown: State, width: int) -> Line:
        if self._note is not None and self._clock() < self._note[2]:
            return line((f" {self._note[0]}", self._note[1]))
        return headline.events_line(shown.events, width)

    def _lines(self, id: str) -> Lines:
        return self.screen_stack[0].query_one(f"#{id}", Lines)

    @property
    def _table(self) -> RequestTable:
        return self.screen_stack[0].query_one("#requests", RequestTable)

    def note(self, text: str, role: str = "good") -> None:
        """Say something in the events line for some seconds."""
        self._note = (clean(text), role, self._clock() + NOTE_S)
        self.paint()

    # ---------------------------------------------------------------- keys

    def action_move(self, rows: int) -> None:
        self._table.move(rows)

    def action_page(self, pages: int) -> None:
        self._table.move(pages * self._table.page)

    def action_sort(self) -> None:
        self.order = self.order.next()
        self.paint()

    def on_request_table_sort_by(self, event: RequestTable.SortBy) -> None:
        self.order = Order(event.name) if event.name in SORTS else self.order
        self.paint()

    def action_freeze(self) -> None:
        """Keep the order of the rows on screen, or let it go."""
        frozen = None if self.order.frozen is not None else tuple(row.id for row in self._table.rows)
        self.order = Order(self.order.by, frozen)
        self.paint()

    def action_pause(self) -> None:
        self._held = None if self._held is not None else self.state
        self.paint()

    def action_retry(self) -> None:
        self._source.retry_now()
        self.note("connecting", "warn")

    def action_help(self) -> None:
        self.push_screen(Help(self._glyphs))

    def action_cancel(self) -> None:
        row = self._table.selected
        if row is None or self._refused():
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act(f"cancelled {row.id}", lambda client: client.cancel(row.id))

        who = f" of {clean(row.user)}" if row.user else ""
        self.push_screen(Confirm(f"Cancel request {clean(row.id)}{who}? What it wrote so far stays."), answered)

    def action_renice(self, by: int) -> None:
        row = self._table.selected
        if row is None or self._refused():
            return
        now = self._clock()
        asked, since = self._nice.get(row.id, (row.nice, now))
        nice = max(NICE_MIN, min(NICE_MAX, (asked if now - since < ECHO_S else row.nice) + by))
        self._nice[row.id] = nice, now
        self._act(f"nice of {row.id} is now {nice}", lambda client: client.renice(row.id, nice))

    def _refused(self) -> bool:
        """Whether acting makes no sense now; says why."""
        live = liveness(self.state, self._clock())
        if self._readonly:
            self.note("read-only: started with --readonly", "warn")
        elif not live.actionable:
            self.note(f"not possible now: {headline.chip(live, self._glyphs)[0]}", "bad")
        return self._readonly or not live.actionable

    def _act(self, done: str, action: Callable[[AsyncClient], Awaitable[object]]) -> None:
        """Run `action` beside the screen; say `done`, or what went wrong."""
        frame = self.state.frame
        url = self._http or (frame.http if frame else "") or DEFAULT_URL

        async def run() -> None:
            try:
                async with self._acting, AsyncClient(url) as client:
                    await action(client)
            except LlmosError as exc:
                self.note(exc.message, "bad")
            else:
                self.note(done)

        self.run_worker(run(), name="action", group="action")


def _queueing_title(shown: State) -> str:
    q = shown.frame.queueing if shown.frame else None
    return "Queueing" if q is None else f"Queueing, last {q.window_s:.0f} s: {q.arrivals} arrived, {q.completions} left"
