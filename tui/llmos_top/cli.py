"""The `llmos-top` command.

Exit codes: 0 done (or, for one look, live), 2 bad usage, 3 the daemon is down, 4 the broker is down, 5 stale.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llmos_top import once
from llmos_top.feed import Feed
from llmos_top.glyphs import ASCII, UNICODE
from llmosd import __version__, config
from llmosd.application import instance
from llmosd.application.endpoint import Endpoint
from llmosd.config import Config
from llmosd.errors import ConfigError

USAGE = 2


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    root = Parser(prog="llmos-top", description="Watch an LLMOS daemon, and act on its requests.")
    root.add_argument("--version", action="version", version=f"llmos-top {__version__}")
    add_options(root)
    return root


def add_options(root: argparse.ArgumentParser) -> None:
    root.add_argument("--once", action="store_true", help="one look as text, then exit: 0 live, 3, 4 or 5 if not")
    root.add_argument("--json", action="store_true", help="Frames as JSON, one a line; with --once a single one")
    root.add_argument("--broker", metavar="URL", help="mqtt://[user:password@]host[:port] (default: local daemon's)")
    root.add_argument("--node", metavar="NAME", help="the machine to watch (default: the first one heard of)")
    root.add_argument("--db", metavar="FILE", type=Path, help="database to read while the broker is down")
    root.add_argument("--http", metavar="URL", help="API of the daemon to act on (default: as the daemon says)")
    root.add_argument("--readonly", action="store_true", help="no key changes anything on the daemon")
    root.add_argument("--ascii", action="store_true", help="no character outside ASCII")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    try:
        return watch(arguments.parse_args(argv))
    except ConfigError as exc:
        arguments.error(exc.message)
    except BrokenPipeError:  # the reader had enough: nothing to report, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 0


def watch(args: argparse.Namespace) -> int:
    """Look as the options say; the exit code. Raises ConfigError."""
    feed = _feed(args, config.load())
    if args.once:
        return _once(args, feed)
    if args.json:
        return _stream(feed)
    return _screen(args, feed)


def _feed(args: argparse.Namespace, settings: Config) -> Feed:
    """From flags, configuration or what the local daemon recorded; the local database tells of no other host."""
    if args.broker:
        return Feed(Endpoint.parse(args.broker), args.node, args.db)
    return Feed(_local(settings), args.node, args.db or settings.database, locate=lambda: _local(settings))


def _local(settings: Config) -> Endpoint:
    told = settings.sources.get("mqtt_port", "default") != "default"
    record = instance.read(settings.home)
    if settings.mqtt:
        return Endpoint.parse(settings.mqtt)
    recorded = record.mqtt if record and not told else ""
    return Endpoint.parse(recorded or f"mqtt://127.0.0.1:{settings.mqtt_port}")


def _once(args: argparse.Namespace, feed: Feed) -> int:
    state = asyncio.run(once.look(feed))
    code = once.exit_code(state)
    if not args.json:
        width = shutil.get_terminal_size((120, 40)).columns
        print(*once.report(state, feed.where, width, ASCII if args.ascii else UNICODE), sep="\n", flush=True)
    elif state.raw:
        _write_line(state.raw)
    if args.json and code != once.LIVE:
        print(f"llmos-top: {WHY[code]} ({feed.endpoint})", file=sys.stderr)
    return code


WHY = {
    once.DAEMON_DOWN: "the daemon is down; start it with `llmosd start`",
    once.BROKER_DOWN: "no broker answers; the daemon runs it: `llmosd start`",
    once.STALE: "the daemon sends no Frames; this is the last one",
}


def _stream(feed: Feed) -> int:
    asyncio.run(once.stream(feed, _write_line))
    return 0


def _write_line(raw: bytes) -> None:
    sys.stdout.buffer.write(raw + b"\n")
    sys.stdout.buffer.flush()


def _screen(args: argparse.Namespace, feed: Feed) -> int:
    from llmos_top.app import LlmosTop  # Textual takes half a second to import: not for --once

    glyphs = ASCII if args.ascii else UNICODE
    LlmosTop(feed, glyphs, node=args.node, http=args.http, readonly=args.readonly).run()
    return 0
