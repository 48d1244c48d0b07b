"""`llmosd models`: what the catalogue has, what is installed, and getting from one to the other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from llmosd.application import instance
from llmosd.application.cli import model_check, model_show, model_synth, options, output
from llmosd.application.cli.progress import Bars
from llmosd.config import Config
from llmosd.errors import InvalidRequest


def add(commands: Any) -> None:
    models = commands.add_parser("models", help="fetch, list and remove models")
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, handler, help in (
        ("pull", _pull, "fetch a model and import it"),
        ("rm", _remove, "remove an installed model"),
    ):
        action = actions.add_parser(name, help=help)
        action.add_argument("model", help="model id, as `llmosd models list` shows it")
        options.add_config(action, ("home",))
        action.set_defaults(handler=handler)
    listing = actions.add_parser("list", help="list the models of the catalogue and the store")
    options.add_config(listing, ("home",))
    options.add_json(listing)
    model_show.add(actions)
    model_check.add(actions)
    model_synth.add(actions)
    listing.set_defaults(handler=_list)


def pull(settings: Config, model_id: str) -> Path:
    """Fetch and import a model unless it is there, with progress on stderr; where it lies. Raises ModelError."""
    from llmosd.hardware import processors
    from llmosd.runtime import catalogue, importer, scaling
    from llmosd.runtime.paged_model import choose_backend

    backend, _ = choose_backend(settings.backend, strict=False)
    with Bars() as progress:
        model = importer.pull(catalogue.manifest(model_id), settings.home, backend, progress)
        scaling.ensure(model, backend, processors.usable_cores(), progress)
    return model.path


def _pull(args: argparse.Namespace) -> int:
    path = pull(options.load(args), args.model)
    print(f"{args.model} is installed in {path}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from llmosd.runtime import catalogue, installed

    here = {model.id: model for model in installed.installed(options.load(args).home)}
    rows = [
        {
            "id": manifest.id,
            "name": manifest.name,
            "licence": manifest.licence,
            "bytes": manifest.source.bytes,
            "installed": manifest.id in here,
        }
        for manifest in catalogue.manifests().values()
    ]
    known = {row["id"] for row in rows}
    rows += [
        {
            "id": model.id,
            "name": model.record.name,
            "licence": model.record.licence,
            "bytes": model.source.stat().st_size,
            "installed": True,
        }
        for model in here.values()
        if model.id not in known
    ]
    if args.json:
        output.json(rows)
    else:
        body = [(r["id"], r["name"], r["licence"], decimal(int(str(r["bytes"]))), r["installed"]) for r in rows]
        output.table(("id", "name", "licence", "size", "installed"), body)
    return 0


def _remove(args: argparse.Namespace) -> int:
    from llmosd.runtime import importer

    home = options.load(args).home
    record = instance.read(home)
    if (pid := instance.running(home)) and record and record.model == args.model:
        raise InvalidRequest(f"the daemon (pid {pid}) serves {args.model}: `llmosd stop` it first")
    importer.remove(home, args.model)
    print(f"{args.model} is removed")
    return 0
