"""`llmosd doctor`: what this machine and installation offer, and what is amiss."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from rich.filesize import decimal

from llmosd.application import instance
from llmosd.application.cli import options, output
from llmosd.config import Config
from llmosd.errors import LlmosError

GOOD, NOTE, BAD = "ok", "note", "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is ok, note (works, but less well than it could) or problem (will not work)."""

    check: str
    state: str
    text: str


def add(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this machine and installation")
    options.add_config(parser)
    options.add_json(parser)
    parser.set_defaults(handler=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    settings = options.load(args)
    findings = [finding for check in CHECKS for finding in check(settings)]
    if args.json:
        output.json([asdict(finding) for finding in findings])
    else:
        output.facts((f"{finding.state:<8} {finding.check}", finding.text) for finding in findings)
    return int(any(finding.state == BAD for finding in findings))


def _python(_settings: Config) -> Iterator[Finding]:
    yield Finding("python", GOOD, f"{sys.version.split()[0]} at {sys.executable}")


def _home(settings: Config) -> Iterator[Finding]:
    home = settings.home
    nearest = next(path for path in (home, *home.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        yield Finding("home", GOOD, str(home) if nearest == home else f"{home}, to be made")
    else:
        yield Finding("home", BAD, f"{home}: {nearest} is no directory you may write to; name another with --home")


def _onnxruntime(_settings: Config) -> Iterator[Finding]:
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    yield Finding("onnxruntime", GOOD, f"{onnxruntime.__version__} with {providers}")


def _native(_settings: Config) -> Iterator[Finding]:
    from llmosd.runtime import native
    from llmosd.runtime.native import build

    status = native.status()
    yield Finding("native operators", GOOD if status.available else NOTE, status.why)
    try:
        yield Finding("compiler", GOOD, shlex.join(build.find_compiler()))
    except build.BuildError as exc:
        yield Finding("compiler", GOOD if status.available else NOTE, str(exc))


def _device(settings: Config) -> Iterator[Finding]:
    from llmosd.runtime.device import choose_device

    try:
        device, why = choose_device(settings)
    except LlmosError as exc:
        yield Finding("device", BAD, exc.message)
    else:
        yield Finding("device", GOOD, f"{device}: {why}")


def _backend(settings: Config) -> Iterator[Finding]:
    from llmosd.runtime.paged_model import choose_backend, choose_kv_format

    try:
        backend, why = choose_backend(settings.backend, settings.strict)
        choose_kv_format(backend, settings.kv_format)
    except LlmosError as exc:
        yield Finding("backend", BAD, exc.message)
    else:
        yield Finding("backend", GOOD if backend == "native" else NOTE, f"{backend}: {why}")


def _model(settings: Config) -> Iterator[Finding]:
    from llmosd.runtime.installed import find

    try:
        model = find(settings.home, settings.model)
    except LlmosError as exc:
        yield Finding("model", NOTE, exc.message)
    else:
        yield Finding("model", GOOD, f"{model.id} in {model.path}")


def _broker(settings: Config) -> Iterator[Finding]:
    from llmosd.application.broker import MOSQUITTO

    if settings.mqtt:
        yield Finding("broker", GOOD, "external, as told by --mqtt")
    elif MOSQUITTO:
        yield Finding("broker", GOOD, f"mosquitto at {MOSQUITTO}, started with the daemon")
    elif find_spec("iotcore"):
        yield Finding("broker", GOOD, "iotcore (Python package), started with the daemon; mosquitto is not installed")
    else:
        yield Finding("broker", BAD, "neither mosquitto nor the Python package iotcore is installed")


def _daemon(settings: Config) -> Iterator[Finding]:
    from llmosd.application.server import listen

    record = instance.read(settings.home)
    if instance.running(settings.home) is not None and record:
        yield Finding("daemon", GOOD, f"{record.state} at {record.http}, pid {record.pid}")
        return
    if record and record.state == "failed":
        yield Finding("daemon", NOTE, f"does not run; the last one failed: {record.error}")
    try:
        listen(settings.host, settings.port).close()
    except LlmosError as exc:
        yield Finding("port", BAD, exc.message)
    else:
        yield Finding("port", GOOD, f"{settings.host}:{settings.port} is free")


def _memory(_settings: Config) -> Iterator[Finding]:
    from llmosd.hardware import memory, processors

    models = f"models and their KV pools may take {decimal(memory.for_models())}"
    yield Finding("memory", GOOD, f"{decimal(memory.available())} available; {models}")
    yield Finding("processors", GOOD, f"{processors.usable_cores()} for the engine, {os.cpu_count()} logical")


def _gpu(_settings: Config) -> Iterator[Finding]:
    from llmosd.hardware.probes import HostProbe

    cards = HostProbe().sample().gpus
    names = ", ".join(f"{card.name} ({decimal(card.memory_total)})" for card in cards)
    yield Finding("gpu", GOOD, names or "none that NVIDIA's driver reports")


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _python,
    _home,
    _onnxruntime,
    _native,
    _device,
    _backend,
    _model,
    _broker,
    _daemon,
    _memory,
    _gpu,
)
