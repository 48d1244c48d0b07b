"""What the header, the banner and an empty screen say: whether the monitor is live, what is wrong and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_top.glyphs import Glyphs
from llmos_top.liveness import Life, Liveness
from llmos_top.numbers import age, clock, seconds
from llmos_top.state import Broker, State
from llmos_top.text import Line, clean, ends, fit, flow, line, width_of
from llmosd.wire import VERSION, EventMessage, Frame

START = "llmosd start"

CHIPS = {
    Life.CONNECTING: ("CONNECTING", "warn"),
    Life.LIVE: ("LIVE", "good"),
    Life.STALE: ("STALE", "warn"),
    Life.DAEMON_DOWN: ("DAEMON DOWN", "bad"),
    Life.BROKER_DOWN: ("BROKER DOWN", "bad"),
    Life.VIA_DB: ("VIA DB", "warn"),
}


@dataclass(frozen=True, slots=True)
class Where:
    """What the monitor was told to look at, in words."""

    broker: str
    database: str = ""


def chip(live: Liveness, glyphs: Glyphs) -> tuple[str, str]:
    """Glyph, word and age (or the time to the next attempt), and the role."""
    word, role = CHIPS[live.life]
    if live.life is Life.BROKER_DOWN and live.retry_in_s is not None:
        tail = f" retry {live.retry_in_s:.0f}s"
    elif live.life in (Life.LIVE, Life.VIA_DB) and live.age_s is not None:
        tail = f" {live.age_s:.1f}s"
    else:
        tail = "" if live.age_s is None or live.life is Life.CONNECTING else f" {age(live.age_s)}"
    return f"{glyphs.life[live.life]} {word}{tail}", role


def header(state: State, live: Liveness, at: float, width: int, glyphs: Glyphs, *, paused: bool) -> Line:
    frame = state.frame
    mark, role = chip(live, glyphs)
    right = [line((mark, role)), line(clock(at))]
    if paused:
        right.insert(0, line((f"{glyphs.paused} PAUSED", "warn")))
    if frame is not None and width >= 100:
        right.insert(-1, line(("up ", "label"), seconds(frame.uptime_s)))
    end = (*flow(right, width - 1), (" ", ""))
    names = [line((" llmos-top", "title")), *_names(state, frame)]
    return ends(flow(names, width - width_of(end) - 2), end, width)


def _names(state: State, frame: Frame | None) -> list[Line]:
    if frame is None:
        return [line(clean(state.node or ""))]
    backend = f"{clean(frame.backend)} {frame.threads} threads"
    return [line(clean(frame.node)), line((clean(frame.model), "accent")), line((backend, "label"))]


def banner(state: State, live: Liveness, where: Where, width: int, glyphs: Glyphs) -> Line | None:
    """The one thing most worth saying, what to do first; None when all is well."""
    mark, role = glyphs.life[live.life], CHIPS[live.life][1]
    if state.unreadable and state.broker is Broker.UP:
        return line((f" {mark} {clean(state.unreadable)}", "warn"))
    if live.life is Life.LIVE:
        return _remark(state)
    last = "" if state.frame is None else f"last known {clock(state.frame.at)}"
    retry = "" if live.retry_in_s is None else f", retry in {live.retry_in_s:.0f}s"
    failure = f"{where.broker}: {clean(state.broker_error)}{retry}"
    start = line(("start it: ", role), (START, "title"))
    match live.life:
        case Life.DAEMON_DOWN:
            chunks = [line(("the daemon is down", role)), start, line(last)]
        case Life.BROKER_DOWN:
            chunks = [line(("no broker answers", role)), start, line(last), line(failure)]
        case Life.VIA_DB:
            chunks = [line(("no broker: showing the database", role)), line(failure)]
        case Life.STALE:
            chunks = [line((f"no Frame for {age(live.age_s or 0)}", role)), line(last)]
        case _ if state.broker is Broker.UP:
            chunks = [line(("connected, waiting for a Frame", role)), line(last)]
        case _:
            chunks = [line((f"connecting to {where.broker}", role)), line(last)]
    return line((f" {mark} ", role), *flow(chunks, width - 4))


def _remark(state: State) -> Line | None:
    """Said while live: something short of trouble."""
    frame = state.frame
    if frame is not None and frame.version > VERSION:
        return line((f" SCHEMA {frame.version}>{VERSION}: the daemon is newer, what is known is shown", "warn"))
    if frame is not None and frame.state != "serving":
        return line((f" The daemon is {clean(frame.state)}", "warn"))
    if state.other_nodes:
        names = ", ".join(sorted(map(clean, state.other_nodes)))
        return line((f" Other nodes: {names} (choose with --node)", "dim"))
    return None


def advice(state: State, live: Liveness, where: Where) -> list[Line]:
    """In place of the table while there is nothing to show: what was tried, what came of it, what to do."""
    if state.frame is not None:
        if live.life is not Life.LIVE:
            return [line(("  No requests in the last Frame that was received.", "dim"))]
        return [line(("  No requests. Send one:  ", "dim"), ('llmosd run "Hello"', "title"))]
    retry = "" if live.retry_in_s is None else f", retry in {live.retry_in_s:.0f}s"
    answer = {
        "up": "connected, but no daemon has said anything there",
        "down": f"{clean(state.broker_error)}{retry}",
        "connecting": "connecting",
    }[state.broker]
    facts = [("broker", f"{where.broker}: {answer}")]
    if where.database:
        facts.append(("database", f"{where.database}: no Frame stored"))
    steps = [
        ("here", START),
        ("elsewhere", "llmos-top --broker mqtt://HOST:1883"),
    ]
    return [
        line(("  Nothing to show yet. What was tried:", "warn")),
        *(line((fit(f"    {name}", 16), "label"), text) for name, text in facts),
        line(""),
        line(("  To start or find a daemon:", "label")),
        *(line((fit(f"    {name}", 16), "label"), (text, "title")) for name, text in steps),
        line(""),
        line(("  This screen recovers by itself. Ctrl+R retries now, q quits.", "dim")),
    ]


SEVERITY = {"info": ("I", "label"), "warning": ("W", "warn"), "error": ("E", "bad")}


def events_line(events: tuple[EventMessage, ...], width: int) -> Line:
    """The newest events that fit, newest first."""
    return (" ", ""), *flow((_event(event) for event in reversed(events[-4:])), width - 1, gap=3)


def _event(event: EventMessage) -> Line:
    letter, role = SEVERITY.get(event.severity, ("?", ""))
    about = f" {clean(event.request)}" if event.request else ""
    return line((f"{clock(event.at)} ", "label"), (f"{letter} ", role), f"{clean(event.text)}{about}"[:100])
