"""`llmosd models synth`: a model of any geometry with random weights, imported as any other."""

from __future__ import annotations

import argparse
import re
from typing import Any

from llmosd.application.cli import options
from llmosd.application.cli.progress import Bars
from llmosd.errors import InvalidRequest

SIZES = {
    "layers": 8,
    "hidden": 512,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 64,
    "ff": 1536,
    "vocab": 4096,
    "context": 2048,
}
PAGE_TOKENS = (16, 32, 64, 128)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def add(actions: Any) -> None:
    synth = actions.add_parser("synth", help="make a model of any geometry with random weights, for tests of size")
    synth.add_argument("name", help="its model id")
    for name, size in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        synth.add_argument(flag, type=int, default=size, metavar="N", help=f"{name.replace('_', ' ')} ({size})")
    synth.add_argument("--untied", action="store_true", help="with an output projection of its own")
    synth.add_argument("--page-tokens", type=int, default=0, choices=(0, *PAGE_TOKENS), help="tokens of a page")
    options.add_config(synth, ("home",))
    synth.set_defaults(handler=_synth)


def _synth(args: argparse.Namespace) -> int:
    from llmosd.runtime import synthetic
    from llmosd.runtime.backend import choose_backend
    from llmosd.runtime.catalogue import manifests
    from llmosd.runtime.geometry import Geometry
    from llmosd.runtime.installed import model_directory

    home = options.load(args).home
    if not NAME.fullmatch(args.name):
        raise InvalidRequest(f"{args.name!r} is no name for a model: letters, digits, dots and dashes make one")
    if args.name in manifests() or model_directory(home, args.name).exists():
        raise InvalidRequest(f"there is a model {args.name} already: choose another name")
    sizes = {name: getattr(args, name) for name in SIZES}
    geometry = Geometry(**sizes, rope_theta=10_000.0, norm_eps=1e-5, bos=0, eos=(1,))
    backend, _ = choose_backend("auto", strict=False)
    with Bars() as progress:
        made = synthetic.install(
            geometry,
            home,
            args.name,
            tied=not args.untied,
            backend=backend,
            page_tokens=args.page_tokens,
            progress=progress,
        )
    print(f"{args.name} is installed in {made.path}")
    return 0
