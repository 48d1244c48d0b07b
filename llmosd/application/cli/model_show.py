"""`llmosd models show`: geometry, licence and files of a model, and what it takes of memory as configured."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from llmosd.application.cli import options, output
from llmosd.config import Config
from llmosd.errors import NotFound

SIZES = (
    "home",
    "backend",
    "weights",
    "kv_format",
    "slots",
    "token_budget",
    "pages",
    "page_tokens",
    "context",
)


def add(actions: Any) -> None:
    show = actions.add_parser("show", help="say all that is known of a model, and what memory it takes")
    show.add_argument("model", help="model id, as `llmosd models list` shows it")
    options.add_config(show, SIZES)
    options.add_json(show)
    show.set_defaults(handler=_show)


def _show(args: argparse.Namespace) -> int:
    settings = options.load(args)
    facts = _facts(settings, args.model)
    memory = _memory(settings, args.model) if facts["path"] else None
    if args.json:
        output.json({**facts, "memory": memory})
        return 0
    output.facts(facts.items())
    if memory:
        _print(memory)
    return 0


def _facts(settings: Config, model_id: str) -> dict[str, Any]:
    from llmosd.runtime import catalogue, installed

    manifest = catalogue.manifests().get(model_id)
    here = next((model for model in installed.installed(settings.home) if model.id == model_id), None)
    known = here.record if here else manifest
    if known is None:
        raise NotFound(f"no model {model_id!r} in the catalogue or the store: see `llmosd models list`")
    source = manifest and f"{manifest.source.project} {manifest.source.version}: {manifest.source.member}"
    return {
        "id": known.id,
        "name": known.name,
        "licence": known.licence,
        "source": source,
        "bytes": manifest.source.bytes if manifest else None,
        "sha256": here.record.files["source.gguf"] if here else manifest and manifest.source.sha256,
        **asdict(known.geometry),
        "path": str(here.path) if here else None,
        "graphs": ", ".join(here.graphs) if here else None,
    }


def _memory(settings: Config, model_id: str) -> dict[str, int] | None:
    """Bytes of a graph on this machine's native operators; None where it is not built or has other operators."""
    from llmosd.application.blueprint import limits_of
    from llmosd.runtime.backend import choose_backend, choose_kv_format, variant_name
    from llmosd.runtime.footprint import footprint
    from llmosd.runtime.installed import find

    model = find(settings.home, model_id)
    backend, _ = choose_backend(settings.backend, strict=False)
    graph = model.graph(variant_name(backend, settings.weights))
    if backend != "native" or not graph.is_file():
        return None
    limits = limits_of(settings, model.geometry, backend)
    found = footprint(
        graph,
        model.geometry,
        tokens=limits.token_budget,
        rows=limits.slots,
        pages=limits.pages,
        page_tokens=limits.page_tokens,
        kv_format=choose_kv_format(backend, settings.kv_format),
    )
    return {**asdict(found), "pool": found.pool, "private": found.private, "total": found.total}


def _print(memory: dict[str, int]) -> None:
    print("\nmemory = weights + workspace + pages × bytes per page")
    print(
        f"       = {decimal(memory['weights'])} + {decimal(memory['workspace'])}"
        f" + {memory['pages']} × {decimal(memory['page'])} = {decimal(memory['total'])} at most\n"
    )
    rows = [
        ("weights", decimal(memory["weights"]), "mapped from the graph's file, shared, in memory once read"),
        ("workspace", decimal(memory["workspace"]), "private: the session, and one step's activations and logits"),
        ("pool", decimal(memory["pool"]), "private: pages take memory when they are first written"),
    ]
    output.table(("part", "size", "kind"), rows)
