"""`llmosd config`: every setting, its value, and where that came from."""

from __future__ import annotations

import argparse
from typing import Any

from llmosd import quota_config
from llmosd.application.cli import options, output
from llmosd.config import OPTIONS


def add(commands: Any) -> None:
    parser = commands.add_parser("config", help="show each setting and where its value came from")
    options.add_config(parser)
    options.add_json(parser)
    parser.set_defaults(handler=show)


def show(args: argparse.Namespace) -> int:
    settings = options.load(args)
    values = {option.name: getattr(settings, option.name) for option in OPTIONS} | quota_config.keys(settings.quotas)
    rows = [(name, value, settings.sources.get(name, "default")) for name, value in values.items()]
    if args.json:
        output.json({name: {"value": value, "source": source} for name, value, source in rows})
    else:
        output.table(("setting", "value", "source"), rows)
    return 0
