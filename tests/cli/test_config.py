from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmosd import config, quota_config
from llmosd.application.cli import main
from llmosd.config import OPTIONS, Bytes
from llmosd.errors import ConfigError
from llmosd.types import Quota


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("slots = 2\ntoken_budget = 64\nthreads = 1\n")
    env = {"LLMOS_HOME": str(tmp_path), "LLMOS_SLOTS": "3", "LLMOS_TOKEN_BUDGET": "65"}
    settings = config.load({"slots": "4"}, env)
    assert (settings.slots, settings.token_budget, settings.threads, settings.port) == (4, 65, 1, 11500)
    names = ("slots", "token_budget", "threads", "port", "home")
    sources = ["--slots", "LLMOS_TOKEN_BUDGET", str(tmp_path / "config.toml"), "default", "LLMOS_HOME"]
    assert [settings.sources[name] for name in names] == sources


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "70000", "between 0 and 65535"),
        ("port", "http", "whole number"),
        ("slots", "0", "between 1"),
        ("backend", "cuda", "auto, native, gather"),
        ("page_tokens", "17", "16, 32, 64, 128"),
        ("strict", "perhaps", "true or false"),
        ("node", "a/b", "letters"),
        ("swap", "-1", "2GiB"),
        ("swap", "2 gallons", "2GiB"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_source_and_a_remedy(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    env = {"LLMOS_HOME": str(tmp_path), f"LLMOS_{name.upper()}": value}
    with pytest.raises(ConfigError) as error:
        config.load({}, env)
    assert f"LLMOS_{name.upper()}" in error.value.message and value in error.value.message
    assert words in error.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [("slotz = 1", "unknown key 'slotz'"), ("slots = ", "not TOML"), ("home = '/x'", "'home'"), ("slots = 1.5", "1.5")],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load({}, {"LLMOS_HOME": str(tmp_path)})
    assert words in error.value.message and str(tmp_path) in error.value.message


@pytest.mark.parametrize(
    ("text", "size", "said"),
    [
        ("0", 0, "0"),
        ("4097", 4097, "4097"),
        ("2GiB", 2 << 30, "2GiB"),
        ("1.5 g", 3 << 29, "1536MiB"),
        ("500MB", 500_000_000, "500000000"),
        ("64kib", 1 << 16, "64KiB"),
    ],
)
def test_sizes_have_units(tmp_path: Path, text: str, size: int, said: str) -> None:
    settings = config.load({"swap": text}, {"LLMOS_HOME": str(tmp_path)})
    assert settings.swap == size and str(settings.swap) == said


def test_every_option_can_be_given_in_every_way(tmp_path: Path) -> None:
    other: dict[type, Any] = {bool: True, int: 32, Bytes: 4096, str: "x", Path: tmp_path}
    for option in OPTIONS[1:]:
        value = option.choices[-1] if option.choices else other[option.type]
        value = int(value) if option.type is int else value
        literal = json.dumps(value, default=str)
        (tmp_path / "config.toml").write_text(f"{option.name} = {literal}")
        home = {"LLMOS_HOME": str(tmp_path)}
        given = [
            config.load({}, home),
            config.load({option.name: str(value)}, home),
            config.load({}, home | {option.env: str(value)}),
        ]
        assert [getattr(settings, option.name) for settings in given] == [value] * 3


def test_the_command_prints_value_and_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--home", str(tmp_path), "--no-strict", "--slots", "7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.keys() == {option.name for option in OPTIONS} | {f"quota.{limit}" for limit in quota_config.LIMITS}
    assert shown["slots"] == {"value": 7, "source": "--slots"}
    assert shown["strict"] == {"value": False, "source": "--strict"}
    assert shown["port"] == {"value": 11500, "source": "default"}


QUOTAS = """
slots = 7
[quota]
running = 4
[quota.users.batch]
share = 0.25
[quota.users."an na"]
running = 0
pages = 100
"""


def test_quotas_are_tables_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text(QUOTAS)
    quotas = config.load({}, {"LLMOS_HOME": str(tmp_path)}).quotas
    assert [quotas.of(user) for user in ("", "batch", "an na")] == [Quota(4), Quota(4, 0, 0.25), Quota(0, 100)]
    assert main(["config", "--home", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    file = str(tmp_path / "config.toml")
    assert shown["quota.running"] == {"value": 4, "source": file}
    assert shown["quota.share"] == {"value": 1.0, "source": "default"}
    assert shown["quota.users.batch.share"] == {"value": 0.25, "source": file}
    assert shown["quota.users.an na.pages"] == {"value": 100, "source": file}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quota = 3", "quota = 3"),
        ("[quota]\nrunning = -1", "quota.running = -1"),
        ("[quota]\ntokens_per_s = -1", "quota.tokens_per_s = -1"),
        ("[quota]\nrunning = true", "quota.running = True"),
        ("[quota]\npages = 1.5", "quota.pages = 1.5"),
        ("[quota]\nshare = 0", "quota.share = 0"),
        ("[quota]\nshare = 'half'", "quota.share = 'half'"),
        ("[quota]\nslots = 1", "quota.'slots'"),
        ("[quota]\nusers = 1", "quota.users = 1"),
        ("[quota.users]\nbob = 1", "quota.users.bob = 1"),
        ("[quota.users.bob]\nshare = 1.1", "quota.users.bob.share = 1.1"),
        ("[quota.users.bob]\nusers = 1", "quota.users.bob.'users'"),
    ],
)
def test_a_wrong_quota_is_refused_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        config.load({}, {"LLMOS_HOME": str(tmp_path)})
    assert words in error.value.message and str(tmp_path) in error.value.message
