"""`llmosd models`: what the catalogue has, what is installed, and getting from one to the other."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from llmosd.application import instance
from llmosd.application.cli import options, output
from llmosd.application.cli.progress import Bars
from llmosd.config import Config
from llmosd.errors import InvalidRequest, ModelError, NotFound


def add(commands: Any) -> None:
    models = commands.add_parser("models", help="fetch, list and remove models")
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, handler, help in (
        ("pull", _pull, "fetch a model and import it"),
        ("show", _show, "say all that is known of a model"),
        ("check", _check, "verify the files of an installed model"),
        ("rm", _remove, "remove an installed model"),
    ):
        action = actions.add_parser(name, help=help)
        action.add_argument("model", help="model id, as `llmosd models list` shows it")
        options.add_config(action, ("home",))
        action.set_defaults(handler=handler)
        if handler in (_show, _check):
            options.add_json(action)
    listing = actions.add_parser("list", help="list the models of the catalogue and the store")
    options.add_config(listing, ("home",))
    options.add_json(listing)
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
    if args.json:
        output.json(rows)
    else:
        body = [(r["id"], r["name"], r["licence"], decimal(int(str(r["bytes"]))), r["installed"]) for r in rows]
        output.table(("id", "name", "licence", "size", "installed"), body)
    return 0


def _show(args: argparse.Namespace) -> int:
    from llmosd.runtime import catalogue, installed

    if (manifest := catalogue.manifests().get(args.model)) is None:
        raise NotFound(f"no model {args.model!r} in the catalogue: see `llmosd models list`")
    here = next((m for m in installed.installed(options.load(args).home) if m.id == manifest.id), None)
    facts = {
        "id": manifest.id,
        "name": manifest.name,
        "licence": manifest.licence,
        "source": f"{manifest.source.project} {manifest.source.version}: {manifest.source.member}",
        "bytes": manifest.source.bytes,
        "sha256": manifest.source.sha256,
        **asdict(manifest.geometry),
        "path": str(here.path) if here else None,
        "graphs": ", ".join(here.graphs) if here else None,
    }
    if args.json:
        output.json(facts)
    else:
        output.facts(facts.items())
    return 0


def _check(args: argparse.Namespace) -> int:
    from llmosd.runtime import installed, integrity

    damaged = integrity.damaged(installed.find(options.load(args).home, args.model))
    if args.json:
        output.json({"id": args.model, "damaged": damaged})
        return 1 if damaged else 0
    if damaged:
        raise ModelError(f"damaged: {', '.join(damaged)}; `llmosd models rm {args.model}`, then pull it again")
    print(f"{args.model}: every file is as it was imported")
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
