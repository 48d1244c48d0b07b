"""`llmosd top`: the monitor, which is a program of its own too, llmos-top."""

from __future__ import annotations

from typing import Any

from llmos_top import cli as monitor


def add(commands: Any) -> None:
    parser = commands.add_parser("top", help="watch the daemon, and act on its requests: the same as llmos-top")
    monitor.add_options(parser)
    parser.set_defaults(handler=monitor.watch)
