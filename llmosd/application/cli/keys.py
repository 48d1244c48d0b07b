"""`llmosd keys`: who may talk to the daemon. Works on the file; a daemon that runs takes it up by itself."""

from __future__ import annotations

import argparse
from typing import Any

from llmosd import quota_config
from llmosd.application import keys
from llmosd.application.cli import options, output
from llmosd.application.keys import Key, Right
from llmosd.errors import InvalidRequest
from llmosd.types import Quota

ID_DIGITS = 12  # of a digest that `list` shows


def add(commands: Any) -> None:
    parser = commands.add_parser("keys", help="make, list and remove the keys that callers show")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    make = actions.add_parser("add", help="make a key for a user; it is printed once and kept nowhere")
    make.add_argument("user", metavar="USER", help="whose requests are those that come with it")
    make.add_argument("--rights", default="own", metavar="|".join(keys.RIGHTS), help="what it lets them do (own)")
    for limit in quota_config.LIMITS:
        make.add_argument(f"--{limit.replace('_', '-')}", metavar="N", type=_number, help=f"quota: {limit}")
    make.set_defaults(handler=_add)

    listing = actions.add_parser("list", help="show whose keys there are")
    options.add_json(listing)
    listing.set_defaults(handler=_list)

    remove = actions.add_parser("remove", help="make a key worthless")
    remove.add_argument("id", metavar="ID", help="as list shows it, or a user with one key")
    remove.set_defaults(handler=_remove)
    for action in (make, listing, remove):
        options.add_config(action, ("home",))


def _add(args: argparse.Namespace) -> int:
    home, secret = options.load(args).home, keys.make()
    limits = {name: value for name in quota_config.LIMITS if (value := getattr(args, name)) is not None}
    quota_config.quota(limits, Quota(), "the command line")
    try:
        user, right = keys.check_user(args.user), Right.parse(args.rights)
    except ValueError as exc:
        raise InvalidRequest(str(exc)) from None
    with keys.changing(home):
        keys.write(home, [*(keys.read(home) or ()), Key(keys.digest_of(secret), user, right, limits)])
    print(secret)
    return 0


def _list(args: argparse.Namespace) -> int:
    rows = [_row(key) for key in keys.read(options.load(args).home) or ()]
    if args.json:
        output.json(rows)
    else:
        names = ("id", "user", "rights", *quota_config.LIMITS)
        output.table(names, [[row[name] for name in names] for row in rows])
    return 0


def _row(key: Key) -> dict[str, Any]:
    named = {"id": key.digest[:ID_DIGITS], "user": key.user, "rights": str(key.right)}
    return named | {name: key.limits.get(name) for name in quota_config.LIMITS}


def _remove(args: argparse.Namespace) -> int:
    home = options.load(args).home
    with keys.changing(home):
        known = keys.read(home) or []
        gone = keys.named(known, args.id)
        keys.write(home, [key for key in known if key is not gone])
    print(f"removed {gone.digest[:ID_DIGITS]} of {gone.user}")
    return 0


def _number(text: str) -> float:
    """Raises ValueError."""
    return int(text) if text.lstrip("-").isdigit() else float(text)
