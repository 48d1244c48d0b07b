"""`llmosd mem`: what memory is used for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.filesize import decimal

from llmosd.application.cli import options, output
from llmosd.application.client import Client
from llmosd.application.memory import MemoryInfo, PoolInfo, ResidenceInfo, UserInfo

MAP_COLUMNS = 64
MODEL_COLUMNS = ("model", "state", "pages", "loads", "unloads")
USER_COLUMNS = ("user", "requests", "running", "pages", "page_s", "generated", "reused")


def add(commands: Any) -> None:
    parser = commands.add_parser("mem", help="show what memory is used for: segments, pages, waste, swap, users")
    options.add_config(parser, options.ADDRESS)
    options.add_json(parser)
    parser.set_defaults(handler=_mem)


def _mem(args: argparse.Namespace) -> int:
    with Client(options.http_url(options.load(args))) as client:
        found = client.memory()
    if args.json:
        output.json(found)
    else:
        _print(found)
    return 0


def _print(found: MemoryInfo) -> None:
    print(f"{decimal(found.free)} of {decimal(found.budget)} free, {_percent(found.fragmentation)} of it in pieces\n")
    rows = [(s.kind, s.owner or "llmosd", decimal(s.bytes), f"{s.offset:#x}") for s in found.segments]
    output.table(("segment", "of", "size", "at"), rows)
    print()
    output.table(MODEL_COLUMNS, [_model(model) for model in found.models])
    for pool in found.pools:
        print(f"\npool of {pool.model}: {pool.pages.total} pages of {pool.page_tokens} tokens, {_size(pool)}")
        output.facts(_facts(pool))
    requests = f"running {found.running}, waiting {found.waiting} (parked {found.parked}), suspended {found.suspended}"
    print()
    output.facts((("requests", requests), ("reused", f"{_percent(found.hit_rate)} of all prompt tokens")))
    if found.users:
        print()
        output.table(USER_COLUMNS, [_user(user) for user in found.users])


def _model(model: ResidenceInfo) -> tuple[Any, ...]:
    state = "loaded" if model.resident else "not loaded"
    bounds = f"{model.pages_least} to {model.pages_most}"
    loads = f"{model.loads} in {model.load_s:.2f} s"
    unloads = f"{model.unloads} in {model.unload_s:.2f} s"
    return model.model, f"{state}, pinned" if model.pinned else state, bounds, loads, unloads


def _user(user: UserInfo) -> tuple[Any, ...]:
    name, rate = "(others)" if user.user is None else user.user, _percent(user.hit_rate)
    return name, user.requests, user.running, user.pages, user.page_s, user.generated_tokens, rate


def _size(pool: PoolInfo) -> str:
    return f"{decimal(pool.pages.total * pool.page_bytes)} of {decimal(pool.page_bytes)} each"


def _facts(pool: PoolInfo) -> Iterator[tuple[str, str]]:
    pages, waste, swap = pool.pages, pool.waste, pool.swap
    yield "used", f"{pages.used}, {pages.shared} of them shared, {pages.arriving} arriving from disk"
    yield "cached", f"{pages.cached}, idle until their memory is needed"
    yield "free", f"{pages.free}; promised of free and cached {pages.promised}"
    if pages.leaving or pages.beyond:
        yield "leaving", f"{pages.leaving} on their way to disk, {pages.beyond} beyond the pool's new size"
    duplicate = "not counted" if waste.duplicate is None else waste.duplicate
    yield (
        "waste",
        f"internal {waste.internal} tokens, duplicate {duplicate}, reserved {waste.reserved}: {decimal(waste.bytes)}",
    )
    if swap.total:
        yield "swap", f"{swap.used} of {swap.total} pages, {swap.requests} requests"
    for start in range(0, len(pool.map), MAP_COLUMNS):
        yield "" if start else "map", pool.map[start : start + MAP_COLUMNS]
    each = "a page" if pool.pages_per_letter == 1 else f"the commonest of {pool.pages_per_letter} pages"
    yield "", f"(a letter is {each}: used, shared, cached, out, in, . free, - not there)"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
