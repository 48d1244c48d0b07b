"""The `llmosd` command: one module a group of subcommands, each with `add(commands)`, imported when it is asked for.

Exit codes: 0 done, 1 failure, 2 bad usage, input or configuration, 3 no daemon answers, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from llmosd import __version__
from llmosd.application.cli import output
from llmosd.errors import ConfigError, InvalidRequest, LlmosError, NotFound, Unavailable

OK, FAILURE, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130

GROUPS = {
    "daemon": ("start", "stop", "status"),
    "run": ("run",),
    "ps": ("ps",),
    "top": ("top",),
    "requests": ("kill", "nice", "suspend", "resume", "wait", "hibernate"),
    "explain": ("explain",),
    "batch": ("batch",),
    "mem": ("mem",),
    "keys": ("keys",),
    "policy": ("policy",),
    "query": ("query",),
    "models": ("models",),
    "doctor": ("doctor",),
    "config": ("config",),
}


class Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """With all commands, or only with the group of the one that is named."""
    root = Parser(prog="llmosd", description="Serve language models from paged memory, and see what happens inside.")
    root.add_argument("--version", action="version", version=f"llmosd {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    wanted = [group for group, names in GROUPS.items() if command in names] or GROUPS
    for group in wanted:
        import_module(f"{__name__}.{group}").add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser(argv[0] if argv else None).parse_args(argv)
    try:
        return int(args.handler(args))
    except LlmosError as exc:
        output.error(exc.message)
        return exit_code(exc)
    except BrokenPipeError:  # the reader of a pipe had enough: nothing to report, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as exc:
        output.error(f"{exc}: `llmosd doctor` checks the directory that is used")
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def exit_code(error: LlmosError) -> int:
    match error:
        case Unavailable():
            return NOT_RUNNING
        case InvalidRequest() | NotFound() | ConfigError():
            return USAGE
    return FAILURE
