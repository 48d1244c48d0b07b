"""`llmosd query`: what the daemon stored, by name or by SQL, whether or not it runs."""

from __future__ import annotations

import argparse
from typing import Any

from llmosd.application import query
from llmosd.application.cli import options
from llmosd.application.tables import FORMATS
from llmosd.errors import InvalidRequest

SINCE = "24h"


def add(commands: Any) -> None:
    parser = commands.add_parser("query", help="ask the database what happened")
    parser.add_argument("name", nargs="?", metavar="|".join(query.CANNED), help="a canned query")
    parser.add_argument("--sql", help="any one statement that only reads, instead of a name")
    parser.add_argument("--since", help=f"how far back: 90s, 10m, 2h, 7d, or an ISO time (default: {SINCE})")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    options.add_json(form)
    options.add_config(parser, ("home",))
    parser.set_defaults(handler=_query)


def _query(args: argparse.Namespace) -> int:
    if bool(args.name) == bool(args.sql):
        raise InvalidRequest(f"say what to query: one of {', '.join(query.CANNED)}, or --sql TEXT")
    if args.sql and args.since:
        raise InvalidRequest("--since goes with a canned query: say it in the SQL")
    path = options.load(args).database
    if args.sql:
        found = query.sql(path, args.sql)
    else:
        since = query.parse_since(args.since or SINCE)
        found = query.canned(path, args.name, since)
    form = "json" if args.json else "csv" if args.csv else "table"
    print(FORMATS[form](found).rstrip("\r\n"))
    return 0
