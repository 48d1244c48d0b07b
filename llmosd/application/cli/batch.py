"""`llmosd batch`: files of requests that run when nobody is kept waiting by it."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from llmosd.application.batch.job import ENDPOINTS, Batch
from llmosd.application.cli import options, output
from llmosd.application.client import Client
from llmosd.errors import InvalidRequest, NotFound

HEADINGS = ("id", "status", "total", "answered", "failed", "created", "input")


def add(commands: Any) -> None:
    batch = commands.add_parser("batch", help="run the requests of a file when nobody is kept waiting by it")
    actions = batch.add_subparsers(title="actions", metavar="ACTION", required=True)

    submit = actions.add_parser("submit", help="upload a file of requests, one JSON object a line, and start")
    submit.add_argument("file", type=Path, metavar="FILE")
    submit.add_argument("--endpoint", choices=ENDPOINTS, default=ENDPOINTS[0], help="where all of them go")
    submit.add_argument("--window", default="24h", help="time after which what has not run is given up")
    submit.set_defaults(handler=_submit)
    listing = actions.add_parser("list", help="list batches")
    options.add_json(listing)
    listing.set_defaults(handler=_list)
    show = actions.add_parser("show", help="show one as JSON")
    show.set_defaults(handler=_show)
    cancel = actions.add_parser("cancel", help="cancel what runs of one; what is done stays")
    cancel.set_defaults(handler=_cancel)
    get = actions.add_parser("get", help="print its results, one JSON object a line")
    get.add_argument("--errors", action="store_true", help="the lines that failed instead")
    get.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to a file")
    get.set_defaults(handler=_get)
    for parser in (show, cancel, get):
        parser.add_argument("id", metavar="ID", help="as list shows it; its beginning is enough")
    for parser in (submit, listing, show, cancel, get):
        options.add_config(parser, options.ADDRESS)


def _client(args: argparse.Namespace) -> Client:
    return Client(options.http_url(options.load(args)))


def _submit(args: argparse.Namespace) -> int:
    try:
        file = args.file.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{args.file} cannot be read: {error.strerror}") from None
    with file, _client(args) as client:
        uploaded = client.upload(args.file.name, file)
        print(client.create_batch(uploaded.id, args.endpoint, args.window).id)
    return 0


def _list(args: argparse.Namespace) -> int:
    with _client(args) as client:
        found = client.batches()
    if args.json:
        output.json(found)
    else:
        output.table(HEADINGS, [_row(batch) for batch in found])
    return 0


def _row(batch: Batch) -> list[Any]:
    counts, created = batch.request_counts, datetime.fromtimestamp(batch.created_at).isoformat(" ")
    done = counts.total, counts.completed, counts.failed
    return [batch.id, batch.status, *done, created, batch.input_file_id]


def _show(args: argparse.Namespace) -> int:
    with _client(args) as client:
        output.json(_find(client, args.id))
    return 0


def _cancel(args: argparse.Namespace) -> int:
    with _client(args) as client:
        batch = client.cancel_batch(_find(client, args.id).id)
    print(f"{batch.id} {batch.status}")
    return 0


def _get(args: argparse.Namespace) -> int:
    with _client(args) as client, ExitStack() as stack:
        batch = _find(client, args.id)
        file = batch.error_file_id if args.errors else batch.output_file_id
        if file is None:
            kind = "failed lines" if args.errors else "results"
            raise NotFound(f"batch {batch.id} has no {kind}: it is {batch.status}")
        target = stack.enter_context(args.output.open("wb")) if args.output else sys.stdout.buffer
        for piece in client.contents(file):
            target.write(piece)
        target.flush()
    return 0


def _find(client: Client, start: str) -> Batch:
    """The one batch whose id begins so, with or without `batch_`."""
    found = [batch for batch in client.batches() if batch.id.startswith((start, f"batch_{start}"))]
    if len(found) > 1:
        raise InvalidRequest(f"{len(found)} batches begin with {start!r}: give more of the id")
    if not found:
        raise NotFound(f"no batch begins with {start!r}")
    return found[0]
