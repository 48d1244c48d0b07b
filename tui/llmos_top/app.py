"""The monitor on a screen: messages change the state as they come, a tick paints it, keys act on requests by id."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.widgets import Footer

from llmos_top import actions, headline
from llmos_top.actions import Action, Nices
from llmos_top.filter import FIELDS, Filter
from llmos_top.glyphs import Glyphs
from llmos_top.headline import Where
from llmos_top.items import Item, View
from llmos_top.keys import KEYS
from llmos_top.layout import Form, form_for
from llmos_top.liveness import Life, Liveness, liveness
from llmos_top.messages import Message
from llmos_top.rows import SORTS, Order
from llmos_top.state import State, reduce
from llmos_top.text import Line, clean, line
from llmos_top.widgets.detail import Detail
from llmos_top.widgets.dialogs import Ask, Choose, Confirm, Help
from llmos_top.widgets.lines import Lines
from llmos_top.widgets.overview import Overview
from llmos_top.widgets.request_table import RequestTable
from llmosd.application.client import DEFAULT_URL, AsyncClient
from llmosd.application.listing import RequestDetail
from llmosd.errors import LlmosError

LOOK_S = 0.25  # how often the state is looked at; it is painted when a Frame came, and the header once a second
NOTE_S = 5.0
FILTER_HINT = f"words, or FIELD=VALUE of {', '.join(FIELDS)}; nothing: all"


class Source(Protocol):
    """What delivers messages; `retry_now` asks it to connect at once."""

    @property
    def where(self) -> Where: ...

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
        glyphs: Glyphs,
        *,
        node: str | None = None,
        http: str | None = None,
        readonly: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._source, self._glyphs = source, glyphs
        self._http, self._readonly = http, readonly
        self._clock, self._wall = clock, wall
        self.state = State(node=node, pinned=node is not None, broker_since=clock())
        self.view = View()
        self._held: State | None = None  # what stays on screen while paused
        self._painted: State | None = None
        self._painted_second = -1
        self._shape: tuple[Form, bool] | None = None
        self._note: tuple[str, str, float] | None = None  # text, role, until
        self._nices = Nices()
        self._acting = asyncio.Lock()  # actions happen in the order of their keys

    # ---------------------------------------------------------------- screen

    def compose(self) -> ComposeResult:
        yield Lines(id="header", ascii=self._glyphs.ascii)
        yield Lines(id="banner", ascii=self._glyphs.ascii)
        yield Overview(self._glyphs)
        yield Lines(id="events", ascii=self._glyphs.ascii)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.screen.set_class(self._glyphs.ascii, "ascii")
        self.run_worker(self._source.follow(self.deliver), name="feed", exclusive=True)
        self.set_interval(LOOK_S, self.look)
        self.paint()

    def on_resize(self) -> None:
        self.call_after_refresh(self.paint)

    def on_lines_resized(self) -> None:
        self.paint()

    # ---------------------------------------------------------------- state → screen

    def deliver(self, message: Message) -> None:
        """Take a message in; it is painted at the next look."""
        self.state = reduce(self.state, message, self._clock())

    def look(self) -> None:
        """Paint what changed: everything after a message, else the clock and ages once a second."""
        if self.state is not self._painted:
            self.paint()
        elif int(self._wall()) != self._painted_second:
            self._paint(self._paint_head)

    def paint(self) -> None:
        """Bring the whole screen up to date."""
        self._painted = self.state
        self._paint(self._paint_head, self._paint_body)

    def _paint(self, *parts: Callable[[State, Liveness], None]) -> None:
        self._painted_second = int(self._wall())
        with contextlib.suppress(NoMatches):  # the screen is being built or torn down
            for part in parts:
                part(self._held or self.state, liveness(self.state, self._clock()))

    def _paint_head(self, shown: State, live: Liveness) -> None:
        """What changes without a message: ages, the clock, how long until a retry, a note that ends."""
        root, width = self.screen_stack[0], self.size.width
        root.set_class(live.life not in (Life.LIVE, Life.VIA_DB), "old")
        paused = self._held is not None
        header = headline.header(self.state, live, self._wall(), width, self._glyphs, paused=paused)
        self._lines("header").show([header])
        banner = headline.banner(self.state, live, self._source.where, width, self._glyphs)
        root.set_class(banner is not None, "warned")
        self._lines("banner").show([banner] if banner else [])
        self._lines("events").show([self._events_line(shown, width)])
        if shown.frame is None or not shown.frame.requests:
            self._overview.show_table(shown, self.view, headline.advice(shown, live, self._source.where))

    def _paint_body(self, shown: State, live: Liveness) -> None:
        form, blank = form_for(*self.size), shown.frame is None
        if self._shape != (form, blank):
            self._reshape(form, blank)
        self._overview.show(shown, form, self.view, headline.advice(shown, live, self._source.where))

    def _reshape(self, form: Form, blank: bool) -> None:
        """Let the stylesheet lay out another form."""
        root, self._shape = self.screen_stack[0], (form, blank)
        for each in Form:
            root.set_class(each is form, each.value)
        root.set_class(blank, "blank")

    def _events_line(self, shown: State, width: int) -> Line:
        if self._note is not None and self._clock() < self._note[2]:
            return line((f" {self._note[0]}", self._note[1]))
        return headline.events_line(shown.events, width)

    def _lines(self, id: str) -> Lines:
        return self.screen_stack[0].query_one(f"#{id}", Lines)

    @property
    def _overview(self) -> Overview:
        return self.screen_stack[0].query_one(Overview)

    @property
    def _table(self) -> RequestTable:
        return self._overview.table

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
        self._show(order=self.view.order.next())

    def on_request_table_sort_by(self, event: RequestTable.SortBy) -> None:
        if event.name in SORTS:
            self._show(order=Order(event.name))

    def action_freeze(self) -> None:
        """Keep the order of the rows on screen, or let it go."""
        ids = tuple(item.key for item in self._table.items)
        self._show(order=Order(self.view.order.by, ids if self.view.order.frozen is None else None))

    def action_tree(self) -> None:
        self._show(tree=not self.view.tree)

    def action_filter(self) -> None:
        self.push_screen(Ask("Show requests with", FILTER_HINT, str(self.view.filter)), self._filter)

    def _filter(self, text: str | None) -> None:
        if text is None:
            return
        try:
            self._show(filter=Filter.parse(text))
        except ValueError as exc:
            self.note(str(exc), "bad")

    def _show(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
        self.paint()

    def action_pause(self) -> None:
        self._held = None if self._held is not None else self.state
        self.paint()

    def action_retry(self) -> None:
        self._source.retry_now()
        self.note("connecting", "warn")

    def action_help(self) -> None:
        self.push_screen(Help(self._glyphs))

    def action_detail(self) -> None:
        """Of one request; a branch of the tree has none."""
        item = self._table.selected
        if item is None or item.is_branch:
            return

        async def load() -> RequestDetail:
            async with AsyncClient(self._url) as client:
                return await client.detail(item.key)

        self.push_screen(Detail(clean(item.key), load, self._glyphs))

    def action_cancel(self) -> None:
        item = self._acted_on()
        if item is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._act(actions.kill(item))

        row = item.row
        who = f" of {clean(row.user)}" if row.user else ""
        what = item.words if item.is_branch else f"request {item.words}{who}"
        self.push_screen(Confirm(f"Cancel {what}? What was written so far stays."), answered)

    def action_suspend(self) -> None:
        if (item := self._acted_on()) is not None:
            self._act(actions.suspend(item))

    def action_renice(self, by: int) -> None:
        if (item := self._acted_on()) is not None:
            self._act(self._nices.change(item, by, self._clock()))

    def action_policy(self) -> None:
        """Ask the daemon which there are, then the person which it shall be."""
        if not self._may_act():
            return

        def chosen(name: str | None) -> None:
            if name is not None:
                self._do(lambda client: client.set_policy(name), f"the policy is now {name}")

        async def ask(client: AsyncClient) -> None:
            found = await client.policy()
            self.push_screen(Choose("Policy that orders requests", found.policies, found.policy), chosen)

        self._do(ask)

    def _acted_on(self) -> Item | None:
        """What is under the cursor, if acting makes sense now."""
        return self._table.selected if self._may_act() else None

    def _may_act(self) -> bool:
        """Whether acting makes sense now; says why not."""
        live = liveness(self.state, self._clock())
        if self._readonly:
            self.note("read-only: started with --readonly", "warn")
        elif not live.actionable:
            self.note(f"not possible now: {headline.chip(live, self._glyphs)[0]}", "bad")
        return live.actionable and not self._readonly

    @property
    def _url(self) -> str:
        frame = self.state.frame
        return self._http or (frame.http if frame else "") or DEFAULT_URL

    def _act(self, action: Action) -> None:
        self._do(lambda client: client.control(action.command, **action.fields), action.done)

    def _do(self, work: Callable[[AsyncClient], Awaitable[object]], done: str = "") -> None:
        """Have the daemon do something, beside the screen; say that it is `done`, or what went wrong."""

        async def run() -> None:
            try:
                async with self._acting, AsyncClient(self._url) as client:
                    await work(client)
            except LlmosError as exc:
                self.note(exc.message, "bad")
            else:
                if done:
                    self.note(done)

        self.run_worker(run(), name="action", group="action")
