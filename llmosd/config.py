"""The daemon's configuration: one table, four sources.

Every field of `Config` with an `_option` is a row of the one table that drives the command line's flags, the
environment's `LLMOS_<NAME>`, the keys of `$LLMOS_HOME/config.toml` and the README. Precedence: flags > environment >
file > default. `Config.sources` says where each value came from. Quotas are tables, and so are in the file only.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_data_dir

from llmosd import quota_config
from llmosd.errors import ConfigError
from llmosd.types import POLICY_NAMES, UNLIMITED, EvictionMode, KvChoice, Quotas, WeightFormat

PREFIX = "LLMOS_"
FILE = "config.toml"
PORT, COUNT, POSITIVE = range(65536), range(2**31), range(1, 2**31)
UNITS = {"": 1, "B": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("B", 1000), ("iB", 1024), ("", 1024))
}


class Bytes(int):
    """A size, said in the largest binary unit that divides it."""

    def __str__(self) -> str:
        unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if self and self % UNITS[unit] == 0), None)
        return f"{self // UNITS[unit]}{unit}" if unit else int.__repr__(self)


def _option(default: Any, help: str, *, range_: range | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field that users may set; a callable default is computed when needed."""
    table = {"help": help, "range": range_, "choices": choices, "default": default}
    return (
        field(default_factory=default, metadata=table) if callable(default) else field(default=default, metadata=table)
    )


def default_home() -> Path:
    return Path(user_data_dir("llmos"))


def default_node() -> str:
    """This host's name, with what MQTT topics and log lines cannot carry replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()) or "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a daemon was told. Derived values (thread count, pool size) are computed where they are used."""

    home: Path = _option(default_home, "directory of models, database, log and config.toml")
    host: str = _option("127.0.0.1", "address the HTTP API listens on")
    port: int = _option(11500, "port of the HTTP API; 0 takes any free one", range_=PORT)
    mqtt: str | None = _option(None, "URL of a broker to use; without it the daemon starts its own on loopback")
    mqtt_port: int = _option(1883, "port of the broker the daemon starts; 0 takes any free one", range_=PORT)
    node: str = _option(default_node, "name of this machine in MQTT topics")
    model: str = _option("smollm2-135m-instruct", "model that is loaded at the start")
    device: str = _option(
        "auto", "where the model runs: a GPU if it can, else the CPU", choices=("auto", "cpu", "cuda")
    )
    backend: str = _option(
        "auto", "native operators or pure ONNX gather, on the CPU", choices=("auto", "native", "gather")
    )
    weights: WeightFormat = _option("file", "weights as in the model's file, or float32", choices=("file", "float32"))
    kv_format: KvChoice = _option(
        "auto",
        "K and V in the pages; auto is int8 with native operators, float16 with others",
        choices=("auto", "float16", "float32", "int8"),
    )
    strict: bool = _option(False, "refuse what could let a token depend on the batch, chunking, preemption or cache")
    threads: int = _option(0, "threads of the engine; 0 is the number of physical cores", range_=COUNT)
    spin: bool = _option(True, "let engine threads wait awake for a moment between operators")
    speculation: bool = _option(True, "feed guesses of the next tokens, taken from what came before, where that pays")
    slots: int = _option(32, "sequences that run at once", range_=POSITIVE)
    token_budget: int = _option(256, "tokens of one engine step, shared by prefill and decode", range_=POSITIVE)
    itl_target: int = _option(
        0,
        "milliseconds a step with decodes may take while prompts are computed; 0 is near what they take alone",
        range_=COUNT,
    )
    ttft_target: int = _option(
        2000, "milliseconds to a request's first token that the policy dynamic tries to keep", range_=POSITIVE
    )
    pages: int = _option(0, "most pages in that model's KV pool; 0 sizes it from `memory`", range_=COUNT)
    page_tokens: int = _option(
        0,
        "tokens a page of that model holds; 0 is what suits the device",
        choices=("0", "16", "32", "64", "128", "256"),
    )
    memory: Bytes = _option(
        Bytes(0), "memory for models, their KV pools and the daemon, as 6GiB; 0 is most of what is free at the start"
    )
    keep_alive: int = _option(
        300, "seconds without a request after which a model other than `model` is unloaded; 0 for never", range_=COUNT
    )
    pinned: str = _option("", "models that stay in memory once loaded, separated by commas")
    swap: Bytes = _option(
        Bytes(4 << 30), "disk that extends the KV pool, in bytes or as 2GiB, and at most what is free; 0 for none"
    )
    eviction: EvictionMode = _option(
        "auto",
        "how a request whose pages went to others gets them back: computed, read from swap, or the cheaper of the two",
        choices=("auto", "recompute", "swap"),
    )
    swap_directory: Path | None = _option(None, "where the swap file lies; without it in the data directory")
    context: int = _option(0, "tokens a sequence may have; 0 is what the model was trained for", range_=COUNT)
    policy: str = _option("fcfs", "who goes first, and who gives way", choices=POLICY_NAMES)
    starve_after: int = _option(
        10, "seconds after which a waiting request starves under the policy priority; 0 for never", range_=COUNT
    )
    starve_share: int = _option(25, "percent of slots and prompt tokens for those that starve", range_=range(1, 101))
    prefix_cache: bool = _option(
        True, "keep pages of past prompts and answers, and share those with a common beginning"
    )
    queue_limit: int = _option(1024, "requests that may wait", range_=POSITIVE)
    queue_tokens: int = _option(
        0, "tokens that waiting requests may have and ask for, all together; 0 is no limit", range_=COUNT
    )
    queue_timeout: int = _option(
        0, "seconds after which a request that was not admitted is given up; 0 for never", range_=COUNT
    )
    stream_buffer: int = _option(
        256, "tokens kept for a client that reads slowly; with more its request pauses", range_=POSITIVE
    )
    stream_timeout: int = _option(
        300, "seconds after which a paused request is cancelled if its client has read nothing", range_=POSITIVE
    )
    readonly: bool = _option(False, "let nobody control requests, models or policy over HTTP and MQTT")
    file_retention: int = _option(
        30, "days for which uploaded files, and what batches gave, are kept", range_=range(1, 3651)
    )
    log_prompts: bool = _option(False, "show and store the beginning of each prompt")
    log_level: str = _option("info", "least severe log line", choices=("debug", "info", "warning", "error"))
    quotas: Quotas = UNLIMITED
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pinned_models(self) -> tuple[str, ...]:
        return tuple(name for part in self.pinned.split(",") if (name := part.strip()))

    @property
    def database(self) -> Path:
        return self.home / "llmos.db"

    @property
    def files(self) -> Path:
        return self.home / "files"

    @property
    def hibernated(self) -> Path:
        return self.home / "hibernated"

    @property
    def swap_home(self) -> Path:
        return self.swap_directory or self.home

    @property
    def log_file(self) -> Path:
        return self.home / "llmosd.log"


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table: how a setting is named, parsed, checked and explained."""

    name: str
    type: type
    help: str
    default: Any
    range: range | None
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def computed(self) -> bool:
        return callable(self.default)

    def value(self, raw: Any, source: str) -> Any:
        """The checked value of what a source holds; raises ConfigError naming the source and what is allowed."""
        try:
            value = _PARSERS[self.type](raw)
        except (TypeError, ValueError):
            raise self._error(raw, source, _NEEDED[self.type]) from None
        if self.choices and str(value) not in self.choices:
            raise self._error(raw, source, f"use one of {', '.join(self.choices)}")
        if self.range is not None and value not in self.range:
            raise self._error(raw, source, f"it must be between {self.range[0]} and {self.range[-1]}")
        if self.name == "node" and re.search(r"[^A-Za-z0-9_.-]", value):
            raise self._error(raw, source, "letters, digits, '.', '_' and '-' are allowed")
        return value

    def _error(self, raw: Any, source: str, remedy: str) -> ConfigError:
        return ConfigError(f"{self.name} = {raw!r} from {source} cannot be used: {remedy}", param=self.name)


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if (value := words.get(str(raw).lower())) is None:
        raise ValueError(raw)
    return value


def _integer(raw: Any) -> int:
    if isinstance(raw, (bool, float)):
        raise ValueError(raw)
    return int(raw)


def _bytes(raw: Any) -> Bytes:
    """A whole number, or a number with a unit: powers of 1024 but for KB, MB, GB and TB."""
    if not isinstance(raw, str):
        return Bytes(_integer(raw))
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", raw.strip(), re.IGNORECASE)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise ValueError(raw)
    return Bytes(float(found[1]) * units[found[2].lower()])


def _string(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError(raw)
    return raw


_PARSERS: dict[type, Callable[[Any], Any]] = {
    bool: _boolean,
    int: _integer,
    str: _string,
    Bytes: _bytes,
    Path: lambda raw: Path(_string(str(raw))).expanduser().absolute(),
}
_NEEDED = {
    bool: "say true or false",
    int: "a whole number is needed",
    str: "some text is needed",
    Bytes: "a size is needed, as 2GiB or 500MB",
    Path: "a path is needed",
}
_TYPES: dict[str, type] = {
    "Path": Path,
    "Path | None": Path,
    "str": str,
    "str | None": str,
    "WeightFormat": str,
    "KvChoice": str,
    "EvictionMode": str,
    "int": int,
    "Bytes": Bytes,
    "bool": bool,
}

OPTIONS: tuple[Option, ...] = tuple(
    Option(f.name, _TYPES[str(f.type)], **f.metadata) for f in fields(Config) if f.metadata
)


def load(flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Resolve every option. `flags` holds what the command line gave (None = not given); raises ConfigError."""
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    env = os.environ if env is None else env
    home, *rest = OPTIONS
    values, sources = {}, {}
    values[home.name], sources[home.name] = _resolve(home, flags, env, {}, "")
    path = values[home.name] / FILE
    file = _read(path)
    for option in rest:
        values[option.name], sources[option.name] = _resolve(option, flags, env, file, str(path))
    quotas, given = quota_config.parse(file.get(quota_config.TABLE, {}), str(path))
    return Config(**values, quotas=quotas, sources=sources | dict.fromkeys(given, str(path)))


def _resolve(
    option: Option, flags: Mapping[str, Any], env: Mapping[str, str], file: Mapping[str, Any], path: str
) -> tuple[Any, str]:
    for source, values, key in (
        (option.flag, flags, option.name),
        (option.env, env, option.env),
        (path, file, option.name),
    ):
        if key in values and values[key] != "":
            return option.value(values[key], source), source
    return (option.default() if option.computed else option.default), "default"


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    names = {option.name for option in OPTIONS} - {"home"} | {quota_config.TABLE}
    if unknown := sorted(set(values) - names):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; `llmosd config` lists the keys", param=unknown[0])
    return values
