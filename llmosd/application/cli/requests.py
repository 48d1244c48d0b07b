"""`llmosd kill`, `nice`, `suspend`, `resume`, `wait` and `hibernate`: what processes have, for requests."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

from llmosd.application.cli import options, selection
from llmosd.application.cli.selection import ID_HELP, client_of, find, selected
from llmosd.application.client import Client
from llmosd.errors import LlmosError, NotFound
from llmosd.types import ENDED, NICE_MAX, NICE_MIN, State

POLL_S = 50.0  # the daemon lets `wait` take a minute


def add(commands: Any) -> None:
    kill = commands.add_parser("kill", help="cancel requests")
    nice = commands.add_parser("nice", help="change the nice value of requests")
    nice.add_argument("value", type=int, help=f"{NICE_MIN} (first) to {NICE_MAX} (last)")
    suspend = commands.add_parser("suspend", help="let requests stand still until they are resumed")
    resume = commands.add_parser("resume", help="let suspended requests go on")
    wait = commands.add_parser("wait", help="return once requests have ended; 0 if all of them finished, else 1")
    wait.add_argument("--timeout", type=float, metavar="SECONDS", help="for so long at most")
    for parser, handler in ((kill, _kill), (nice, _nice), (suspend, _suspend), (resume, _resume), (wait, _wait)):
        selection.add(parser)
        parser.set_defaults(handler=handler)

    hibernate = commands.add_parser("hibernate", help="suspend requests and keep them on disk: they survive a restart")
    hibernate.add_argument("ids", nargs="*", metavar="ID", help=f"{ID_HELP}; all live ones without it")
    options.add_config(hibernate, options.ADDRESS)
    hibernate.set_defaults(handler=_hibernate)


def _control(args: argparse.Namespace, command: str, **fields: Any) -> int:
    with client_of(args) as client:
        changed = client.control(command, **selected(client, args), **fields)
    if not changed:
        raise NotFound("no live request is like that: `llmosd ps` shows those that are there")
    for request in changed:
        print(f"{request.id} nice {request.nice}" if command == "nice" else f"{request.id} {request.state}")
    return 0


_kill = partial(_control, command="kill")
_suspend = partial(_control, command="suspend")
_resume = partial(_control, command="resume")


def _nice(args: argparse.Namespace) -> int:
    return _control(args, "nice", nice=args.value)


def _wait(args: argparse.Namespace) -> int:
    end = None if args.timeout is None else time.monotonic() + args.timeout
    with client_of(args) as client:
        wanted, ends = selected(client, args), dict[str, str]()
        while True:
            live = _poll(client, wanted, end, ends)
            if not live:
                return 0 if set(ends.values()) <= {State.FINISHED} else 1
            if end is not None and time.monotonic() >= end:
                raise LlmosError(f"{len(live)} have not ended after {args.timeout:g} s, {live[0]} among them")
            wanted = {"ids": live}


def _poll(client: Client, wanted: dict[str, Any], end: float | None, ends: dict[str, str]) -> list[str]:
    """Those that have not ended yet; the others are told, and noted in `ends`."""
    left = POLL_S if end is None else min(POLL_S, max(0.0, end - time.monotonic()))
    found = client.control("wait", **wanted, timeout_s=left)
    for request in found:
        if request.state in ENDED:
            ends[request.id] = request.state
            print(f"{request.id} {request.state}", flush=True)
    return [request.id for request in found if request.state not in ENDED]


def _hibernate(args: argparse.Namespace) -> int:
    with client_of(args) as client:
        ids = [find(client, id).id for id in args.ids]
        found = [client.hibernate(id) for id in ids] if ids else client.hibernate_all()
    for request in found:
        print(f"{request.id} {'hibernated' if request.state == State.SUSPENDED else request.state}")
    return 0
