"""`llmosd ps`: the process table of requests, as a tree of users, sessions and requests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from llmosd.application.cli import options, output
from llmosd.application.cli.selection import add_filters, client_of, filters_of
from llmosd.application.listing import RequestInfo
from llmosd.application.plain import plain
from llmosd.application.query import Table
from llmosd.application.tables import as_table
from llmosd.types import ENDED

COLUMNS = {
    "state": "state",
    "nice": "nice",
    "service_class": "class",
    "position": "position",
    "prompt_tokens": "prompt",
    "completion_tokens": "done",
    "max_tokens": "max",
    "pages": "pages",
    "swapped_pages": "swapped",
    "preemptions": "preempted",
    "total_ms": "total_ms",
    "ttft_ms": "ttft_ms",
    "waits_for": "waits for",
}  # field → heading


def add(commands: Any) -> None:
    ps = commands.add_parser("ps", help="list the requests that wait and run, by user and session")
    ps.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    add_filters(ps)
    options.add_json(ps)
    options.add_config(ps, options.ADDRESS)
    ps.set_defaults(handler=_ps)


def _ps(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        found = client.requests(**filters_of(args))
    asked = args.all or args.state in ENDED
    found = [request for request in found if asked or request.state not in ENDED]
    if args.json:
        output.json(found)
    else:
        print("\n".join(tree(found)))
    return 0


def tree(requests: Sequence[RequestInfo]) -> Iterator[str]:
    """Lines of a table. A user's line, below it those of sessions, below them requests; one alone has no session's."""
    users: dict[str, dict[str, list[RequestInfo]]] = {}
    for request in requests:
        users.setdefault(request.user, {}).setdefault(request.session, []).append(request)
    above, rows = list[list[str]](), list[list[Any]]()
    for user, sessions in users.items():
        heads = [plain(user) or "(no user)"]
        for session, members in sessions.items():
            alone = [member.id for member in members] == [session]
            heads += [] if alone else [f"  {plain(session)}"]
            for member in members:
                above.append(heads)
                rows.append([f"{'  ' if alone else '    '}{member.id}", *(getattr(member, name) for name in COLUMNS)])
                heads = []
    title, *lines = as_table(Table(("user, session, request", *COLUMNS.values()), rows)).split("\n")
    yield title
    for heads, line in zip(above, lines, strict=True):
        yield from heads
        yield line
