"""`llmosd ps`, `kill`, `nice`, `suspend`, `resume` and `hibernate`: the process table of requests."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from llmosd.application.cli import options, output
from llmosd.application.client import Client
from llmosd.application.listing import RequestInfo
from llmosd.errors import InvalidRequest
from llmosd.types import ENDED, NICE_MAX, NICE_MIN, State

COLUMNS = {
    "id": "id",
    "state": "state",
    "nice": "nice",
    "user": "user",
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
    ps = commands.add_parser("ps", help="list the requests that wait and run")
    ps.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    options.add_json(ps)
    ps.set_defaults(handler=_ps)

    kill = commands.add_parser("kill", help="cancel requests")
    kill.add_argument("ids", nargs="+", metavar="ID", help="as ps shows it; its beginning is enough")
    kill.set_defaults(handler=_kill)

    nice = commands.add_parser("nice", help="change the nice value of a request")
    nice.add_argument("value", type=int, help=f"{NICE_MIN} (first) to {NICE_MAX} (last)")
    nice.add_argument("id", metavar="ID", help="as ps shows it; its beginning is enough")
    nice.set_defaults(handler=_nice)

    suspend = commands.add_parser("suspend", help="let requests stand still until they are resumed")
    suspend.set_defaults(handler=_suspend)
    resume = commands.add_parser("resume", help="let suspended requests go on")
    resume.set_defaults(handler=_resume)
    for parser in (suspend, resume):
        parser.add_argument("ids", nargs="+", metavar="ID", help="as ps shows it; its beginning is enough")
    hibernate = commands.add_parser("hibernate", help="suspend requests and keep them on disk: they survive a restart")
    hibernate.add_argument("ids", nargs="*", metavar="ID", help="as ps shows it; all live ones without it")
    hibernate.set_defaults(handler=_hibernate)
    for parser in (ps, kill, nice, suspend, resume, hibernate):
        options.add_config(parser, options.ADDRESS)


def _client(args: argparse.Namespace) -> Client:
    return Client(options.http_url(options.load(args)))


def _ps(args: argparse.Namespace) -> int:
    with _client(args) as client:
        found = [request for request in client.requests() if args.all or request.state not in ENDED]
    if args.json:
        output.json(found)
    else:
        output.table(tuple(COLUMNS.values()), [[getattr(request, name) for name in COLUMNS] for request in found])
    return 0


def _kill(args: argparse.Namespace) -> int:
    return _for_each(args, Client.cancel)


def _nice(args: argparse.Namespace) -> int:
    with _client(args) as client:
        changed = client.renice(_find(client, args.id).id, args.value)
    print(f"{changed.id} nice {changed.nice}")
    return 0


def _suspend(args: argparse.Namespace) -> int:
    return _for_each(args, Client.suspend)


def _resume(args: argparse.Namespace) -> int:
    return _for_each(args, Client.resume)


def _hibernate(args: argparse.Namespace) -> int:
    with _client(args) as client:
        ids = [_find(client, id).id for id in args.ids]
        found = [client.hibernate(id) for id in ids] if ids else client.hibernate_all()
    for request in found:
        print(f"{request.id} {'hibernated' if request.state == State.SUSPENDED else request.state}")
    return 0


def _for_each(args: argparse.Namespace, action: Callable[[Client, str], RequestInfo]) -> int:
    with _client(args) as client:
        for id in args.ids:
            changed = action(client, _find(client, id).id)
            print(f"{changed.id} {changed.state}")
    return 0


def _find(client: Client, start: str) -> RequestInfo:
    """The one request that has this id, or the one live request whose id begins so."""
    requests = client.requests()
    if exact := [request for request in requests if request.id == start]:
        return exact[0]
    live = [request for request in requests if request.id.startswith(start) and request.state not in ENDED]
    if len(live) > 1:
        raise InvalidRequest(f"{len(live)} live requests begin with {start!r}: give more of the id")
    return live[0] if live else client.request(start)
