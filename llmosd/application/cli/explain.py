"""`llmosd explain`: where a request's time went, as a timeline, with or without a daemon."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from textwrap import wrap
from typing import Any

from llmosd.application import query
from llmosd.application.cli import options, output
from llmosd.application.client import Client
from llmosd.application.explain import PHASES, Latency, span
from llmosd.application.listing import RequestInfo
from llmosd.application.plain import plain
from llmosd.errors import InvalidRequest, Unavailable
from llmosd.system.timeline import DOWN
from llmosd.types import ENDED, Nanoseconds, WaitReason

BAR = 46
WIDTH = 80


@dataclass(frozen=True, slots=True)
class Explained:
    """A request and its latency, of the daemon or of the database."""

    id: str
    user: str
    model: str
    state: str
    created_at: float
    finish: str | None
    error: str | None
    latency: Latency


_COMMON = ("id", "user", "model", "state", "created_at", "finish", "error")


def add(commands: Any) -> None:
    parser = commands.add_parser("explain", help="show where a request's time went, and what would shorten it")
    parser.add_argument("id", metavar="ID", help="of a live or an ended request; its beginning is enough")
    options.add_json(parser)
    options.add_config(parser, options.ADDRESS)
    parser.set_defaults(handler=_explain)


def _explain(args: argparse.Namespace) -> int:
    explained = _look_up(args)
    if args.json:
        output.json(explained)
    else:
        print("\n".join(lines(explained)))
    return 0


def _look_up(args: argparse.Namespace) -> Explained:
    """A live request from the daemon, an ended one from the database. Raises NotFound, InvalidRequest, StoreError."""
    settings = options.load(args)
    try:
        with Client(options.http_url(settings)) as client:
            known = _known(client, args.id)
            if known is not None and known.state not in ENDED:
                return _of_daemon(client, known.id)
            row = query.request(settings.database, known.id if known else args.id)
            if known is not None and row["state"] not in ENDED:  # it has just ended: not stored yet
                return _of_daemon(client, known.id)
    except Unavailable:
        row = query.request(settings.database, args.id)
    return Explained(**{name: row[name] for name in _COMMON}, latency=Latency.of_row(row))


def _of_daemon(client: Client, id: str) -> Explained:
    detail = client.detail(id)
    return Explained(**{name: getattr(detail, name) for name in _COMMON}, latency=detail.latency)


def _known(client: Client, start: str) -> RequestInfo | None:
    """The one request that the daemon lists whose id is this or begins so."""
    found = [request for request in client.requests() if request.id.startswith(start)]
    exact = [request for request in found if request.id == start]
    if len(found) > 1 and not exact:
        raise InvalidRequest(f"{len(found)} requests begin with {start!r}: give more of the id", param="id")
    return next(iter(exact or found), None)


# ---------------------------------------------------------------- the timeline, at most 80 columns wide


def lines(explained: Explained) -> Iterator[str]:
    latency = explained.latency
    end = explained.error or explained.finish
    user = f", user {plain(explained.user, 20)}" if explained.user else ""
    yield _cut(f"{plain(explained.id)}  {explained.state}{f' ({plain(end)})' if end else ''}")
    yield _cut(f"{plain(explained.model)}{user}, arrived {_at(explained.created_at)}")
    first = "" if latency.ttft_ns is None else f", first token after {span(latency.ttft_ns)}"
    yield f"total {span(latency.total_ns)}{first}"
    yield ""
    yield f"{'':26}0{span(latency.total_ns):>{BAR + 1}}"
    spans = list(intervals(latency))
    for phase in PHASES:
        if time := latency.phase(phase):
            own = [(begin, end) for name, begin, end in spans if name == phase]
            yield f"{_row(phase, time, latency.total_ns)}  |{bar(own, latency.total_ns)}|"
        if phase == "queued" and time:
            for reason in WaitReason:
                if part := getattr(latency.queued_by, reason):
                    yield _row(f"  {reason}", part, latency.total_ns)
    yield ""
    yield from wrap(latency.advice, WIDTH, break_long_words=False, break_on_hyphens=False)


def intervals(latency: Latency) -> Iterator[tuple[str, Nanoseconds, Nanoseconds]]:
    """(phase, begin, end), as far as the timeline tells. What precedes its first entry ends with tokenisation.

    Where the last state is not the end, it lasted as long as its time says: then the daemon was gone.
    """
    if not latency.timeline:
        return
    first = latency.timeline[0][1]
    yield "rest", 0, first - latency.tokenise_ns
    yield "tokenise", first - latency.tokenise_ns, first
    spent = Counter[str]()
    for (state, begin), (_, end) in pairwise(latency.timeline):
        spent[state] += end - begin
        yield ("rest" if state == DOWN else state), begin, end
    last, begin = latency.timeline[-1]
    if last in PHASES:
        end = min(latency.total_ns, begin + latency.phase(last) - spent[last])
        yield last, begin, end
        yield "rest", end, latency.total_ns


def bar(spans: list[tuple[Nanoseconds, Nanoseconds]], total: Nanoseconds) -> str:
    """`#` in every cell that one of the spans reaches into."""
    cells = [" "] * BAR
    for begin, end in spans:
        if begin < end:
            for cell in range(begin * BAR // total, min(BAR, -(-end * BAR // total))):
                cells[cell] = "#"
    return "".join(cells)


def _row(name: str, time: Nanoseconds, total: Nanoseconds) -> str:
    return f"{name:<10}{span(time):>9} {round(100 * time / total):>3} %"


def _at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).isoformat(" ", "milliseconds")


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
