"""`llmosd models`: what the catalogue has, what is installed and in memory, and getting from one to the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from llmosd.application import instance
from llmosd.application.cli import model_check, model_show, model_synth, options, output
from llmosd.application.cli.progress import Bars
from llmosd.application.client import Client
from llmosd.config import Config
from llmosd.errors import InvalidRequest, LlmosError


def add(commands: Any) -> None:
    models = commands.add_parser("models", help="fetch, list, load, unload and remove models")
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, handler, help in (
        ("pull", _pull, "fetch a model and import it"),
        ("rm", _remove, "remove an installed model"),
    ):
        action = actions.add_parser(name, help=help)
        action.add_argument("model", help="model id, as `llmosd models list` shows it")
        options.add_config(action, ("home",))
        action.set_defaults(handler=handler)
    listing = actions.add_parser("list", help="list the models of the catalogue and the store, and which are in memory")
    options.add_config(listing, ("home",))
    options.add_json(listing)
    for name, work, help in (
        ("load", Client.load, "have the daemon load an installed model now"),
        ("unload", Client.unload, "have the daemon unload a model once its requests have ended"),
    ):
        action = actions.add_parser(name, help=help)
        action.add_argument("model", help="model id, as `llmosd models list` shows it")
        options.add_config(action, options.ADDRESS)
        action.set_defaults(handler=partial(_move, name, work))
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


def _move(name: str, work: Callable[[Client, str], None], args: argparse.Namespace) -> int:
    with Client(options.http_url(options.load(args))) as client:
        work(client, args.model)
    print(f"{args.model} is {name}ed")
    return 0


def _loaded(home: Path) -> set[str] | None:
    """Models in the memory of this data directory's daemon; None where none answers."""
    record = instance.read(home)
    if not record or not record.http or not instance.running(home):
        return None
    with suppress(LlmosError), Client(record.http) as client:
        return client.loaded_models()
    return None


def _list(args: argparse.Namespace) -> int:
    from llmosd.runtime import catalogue, installed

    home = options.load(args).home
    here, loaded = {model.id: model for model in installed.installed(home)}, _loaded(home)
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
    for row in rows:
        row["loaded"] = None if loaded is None else row["id"] in loaded
    if args.json:
        output.json(rows)
    else:
        body = [
            (r["id"], r["name"], r["licence"], decimal(int(str(r["bytes"]))), r["installed"], r["loaded"]) for r in rows
        ]
        output.table(("id", "name", "licence", "size", "installed", "loaded"), body)
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
