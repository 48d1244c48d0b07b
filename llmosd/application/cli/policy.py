"""`llmosd policy`: which policy orders the requests, and another one from now on."""

from __future__ import annotations

import argparse
from typing import Any

from llmosd.application.cli import options, output
from llmosd.application.client import Client


def add(commands: Any) -> None:
    parser = commands.add_parser("policy", help="show or change the policy that orders requests")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the one that orders them from the next step on")
    options.add_config(parser, options.ADDRESS)
    options.add_json(parser)
    parser.set_defaults(handler=_policy)


def _policy(args: argparse.Namespace) -> int:
    with Client(options.http_url(options.load(args))) as client:
        found = client.set_policy(args.name) if args.name is not None else client.policy()
    if args.json:
        output.json(found)
    else:
        output.facts((("policy", found.policy), ("there are", ", ".join(found.policies))))
    return 0
