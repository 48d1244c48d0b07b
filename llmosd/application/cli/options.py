"""Flags shared by several commands, and the way from them to a configuration or a client."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from llmosd import config
from llmosd.application import instance
from llmosd.config import OPTIONS, Config

ADDRESS = ("home", "host", "port")


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_config(parser: argparse.ArgumentParser, names: Iterable[str] = ()) -> None:
    """Flags of the named configuration options, of all without names. Unset flags are None: the next source decides."""
    wanted = set(names)
    for option in OPTIONS:
        if wanted and option.name not in wanted:
            continue
        if option.type is bool:
            parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=None, help=option.help)
        else:
            metavar = "|".join(option.choices) or option.name.upper()
            parser.add_argument(option.flag, metavar=metavar, default=None, help=option.help)


def load(args: argparse.Namespace) -> Config:
    return config.load({option.name: getattr(args, option.name, None) for option in OPTIONS})


def http_url(settings: Config) -> str:
    """Where the daemon is: as told by flag, environment or file, else as its record says, else the default."""
    told = any(settings.sources[name] != "default" for name in ("host", "port"))
    record = instance.read(settings.home)
    if not told and record and record.http:
        return record.http
    return f"http://{settings.host}:{settings.port}"
