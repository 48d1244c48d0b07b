"""Which requests a command is about: ids, of which the beginning is enough, or a filter."""

from __future__ import annotations

import argparse
from typing import Any

from llmosd.application.cli import options
from llmosd.application.client import Client
from llmosd.application.listing import RequestInfo
from llmosd.errors import InvalidRequest
from llmosd.types import ENDED, State

ID_HELP = "as ps shows it; its beginning is enough"
_FILTERS = {"user": "user", "session": "session", "state": "state", "model": "model", "class_": "class"}  # dest → field


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", help="those of this user")
    parser.add_argument("--session", help="those of this session")
    parser.add_argument("--state", metavar="STATE", help=f"those in this state: {', '.join(State)}")
    parser.add_argument("--model", help="those of this model")
    parser.add_argument("--class", dest="class_", metavar="CLASS", help="those of this class: interactive or batch")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"{ID_HELP}; without it a filter says which")
    add_filters(parser)
    options.add_config(parser, options.ADDRESS)


def client_of(args: argparse.Namespace) -> Client:
    return Client(options.http_url(options.load(args)))


def filters_of(args: argparse.Namespace) -> dict[str, Any]:
    return {field: value for dest, field in _FILTERS.items() if (value := getattr(args, dest)) is not None}


def selected(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a command. Raises InvalidRequest or NotFound where a beginning is that of no or of many ids."""
    filters = filters_of(args)
    return filters | {"ids": [find(client, id).id for id in args.ids]} if args.ids else filters


def find(client: Client, start: str) -> RequestInfo:
    """The one request that has this id, or the one live request whose id begins so."""
    requests = client.requests()
    if exact := [request for request in requests if request.id == start]:
        return exact[0]
    live = [request for request in requests if request.id.startswith(start) and request.state not in ENDED]
    if len(live) > 1:
        raise InvalidRequest(f"{len(live)} live requests begin with {start!r}: give more of the id")
    return live[0] if live else client.request(start)
