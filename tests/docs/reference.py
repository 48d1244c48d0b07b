"""The reference tables of the README, made from the code: `python tests/docs/reference.py` writes them anew."""

from __future__ import annotations

import argparse
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from starlette.routing import Route

from llmos_top.keys import KEYS
from llmosd.application.cli import parser
from llmosd.application.gauges import offer_metrics
from llmosd.application.http.app import create_app
from llmosd.application.http.metrics import Metrics
from llmosd.application.migrate import migrate
from llmosd.application.topics import TOPICS
from llmosd.config import OPTIONS, Option

README = Path(__file__).parents[2] / "README.md"

Rows = list[Sequence[str]]


def commands() -> Rows:
    (actions,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    described = ((choice.dest, choice.help or "") for choice in actions._choices_actions)
    return [("command", "what it does"), *((f"`llmosd {name}`", text) for name, text in described)]


def options() -> Rows:
    head = ("setting", "default", "meaning")
    return [head, *((f"`{option.name}`", _default(option), _meaning(option)) for option in OPTIONS)]


def _default(option: Option) -> str:
    if option.computed:
        return "of the platform" if option.name == "home" else "the host's name"
    if option.default is None:
        return "none"
    return f"`{str(option.default).lower() if isinstance(option.default, bool) else option.default}`"


def _meaning(option: Option) -> str:
    return option.help + (f" ({', '.join(option.choices)})" if option.choices else "")


def topics() -> Rows:
    head = ("topic", "QoS", "retained", "payload", "rate", "last will")
    return [
        head,
        *(
            (
                f"`{t.on('<node>')}`",
                str(t.qos),
                "yes" if t.retain else "no",
                f"`{t.payload.__name__}`",
                t.rate,
                t.last_will,
            )
            for t in TOPICS
        ),
    ]


def tables() -> Rows:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        migrate(database)
        find = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
        names = [name for (name,) in database.execute(find)]
        columns = [[row[1] for row in database.execute(f"PRAGMA table_info({name})")] for name in names]
    described = ((f"`{name}`", ", ".join(found)) for name, found in zip(names, columns, strict=True))
    return [("table", "columns"), *described]


def keys() -> Rows:
    return [("key", "what it does"), *((key.shown, key.help) for key in KEYS)]


ENDPOINTS = {
    "/v1/chat/completions": "answer a conversation; `stream` sends it as it comes",
    "/v1/completions": "continue a text, token ids, or a list of either",
    "/v1/models": "all models that are installed, and which are in memory",
    "/v1/models/{id}": "one of them",
    "/v1/files": "upload a file of requests (`purpose=batch`), or list files",
    "/v1/files/{id}": "one of them; DELETE removes its contents",
    "/v1/files/{id}/content": "its contents",
    "/v1/batches": "run the requests of a file when nobody is kept waiting by it, or list batches",
    "/v1/batches/{id}": "one of them, with its status and counts",
    "/v1/batches/{id}/cancel": "cancel what runs of it; what is done stays",
    "/v1/models/{id}/load": "load it now; answered when it is in memory",
    "/v1/models/{id}/unload": "unload it when its requests have ended; answered then",
    "/v1/requests": "live requests and the last 1,000 ended; filters `user`, `session`, `state`, `model`, `class`",
    "/v1/requests/{id}": 'show (latency, and its text where that is open), cancel, or renice with `{"priority": n}`',
    "/v1/requests/{id}/suspend": "let it stand still; its stream stays open",
    "/v1/requests/{id}/resume": "let a suspended one go on",
    "/v1/requests/{id}/hibernate": "suspend it and keep it on disk; answered when it is durable",
    "/v1/requests/{id}/stream": "what it says after the first `from` characters, as a stream, to its end",
    "/v1/control": "ps, kill, nice, suspend, resume or wait for requests by id or by a filter",
    "/v1/hibernate": "hibernate all live requests",
    "/v1/policy": 'which policy orders requests and which there are; `{"policy": name}` sets it from the next step on',
    "/v1/memory": "segments, pages by state, waste, swap, a map of the pool, top users",
    "/v1/status": "what `llmosd status --json` shows",
    "/health": "200 while requests are taken, else 503",
    "/metrics": "metrics for Prometheus",
}


def endpoints() -> Rows:
    backing: Any = SimpleNamespace(service=None, hibernation=None, models=None)
    app = create_app(
        backing,
        cast(Any, SimpleNamespace(files=None)),
        access=backing,
        host="",
        registry=Metrics("").registry,
        status=dict,
        observe=lambda *_: None,
    )
    rows: Rows = [("endpoint", "methods", "what it does")]
    for route in app.routes:
        assert isinstance(route, Route)
        path, methods = route.path.replace(":path", ""), sorted((route.methods or set()) - {"HEAD"})
        rows.append((f"`{path}`", ", ".join(methods), ENDPOINTS[path]))
    return rows


def metrics() -> Rows:
    kept, registry = Metrics(""), []
    nothing: Any = SimpleNamespace(p99_ms=lambda: 0.0, connected=True, gaps=0, lost=0, inspected=None)
    offer_metrics(kept, nothing, nothing, nothing, nothing)
    kept.observe(cast(Any, SimpleNamespace(stats=_stats(), events=(), step=None)))
    for family in kept.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        registry.append((f"`{family.name}{suffix}`", family.type, family.documentation))
    return [("metric", "type", "meaning"), *sorted(registry)]


def _stats() -> Any:
    from llmosd.system.kernel import Kernel, Limits
    from llmosd.system.policy import POLICIES

    limits = Limits(slots=1, token_budget=1, queue_limit=1, context=1, page_tokens=1, pages=1)
    return Kernel(limits, POLICIES["fcfs"]()).stats(requests=False)


SECTIONS: dict[str, Callable[[], Rows]] = {
    "commands": commands,
    "settings": options,
    "topics": topics,
    "tables": tables,
    "keys": keys,
    "endpoints": endpoints,
    "metrics": metrics,
}


def markdown(rows: Rows) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def section(text: str, name: str) -> re.Match[str]:
    """What stands between the two marks of a section."""
    found = re.search(rf"(<!-- {name} -->\n)(.*?)(\n<!-- end -->)", text, re.DOTALL)
    assert found, f"the README has no section {name}"
    return found


def main() -> None:
    text = README.read_text()
    for name, rows in SECTIONS.items():
        found = section(text, name)
        text = text[: found.start(2)] + markdown(rows()) + text[found.end(2) :]
    README.write_text(text)


if __name__ == "__main__":
    main()
