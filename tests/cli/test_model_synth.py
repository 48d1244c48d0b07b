"""A synthetic model is a model as any other: listed, shown, built for other backends; nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmosd.application.cli import main
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import find

SMALL = ["--layers", "2", "--hidden", "64", "--heads", "2", "--kv-heads", "1", "--head-dim", "32", "--ff", "96"]
SMALL += ["--vocab", "300", "--context", "64"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert main(["models", "synth", "small", "--home", str(home), "--page-tokens", "32", *SMALL]) == 0
    return home


def test_it_is_listed_and_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--home", str(home), "--json"]) == 0
    [row] = [row for row in json.loads(capsys.readouterr().out) if row["id"] == "small"]
    assert row["installed"]
    assert main(["models", "show", "small", "--home", str(home), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["layers"], shown["hidden"], shown["vocab"], shown["context"]) == (2, 64, 300, 64)


def test_its_record_has_what_other_graphs_are_verified_against(home: Path) -> None:
    model = find(home, "small")
    assert model.record.page_tokens == 32
    assert ensure_graph(model, "gather", "float32", lambda stage, done, total: None).is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["small"], "there is a model small already"),
        (["smollm2-135m-instruct"], "already"),
        (["../out"], "is no name for a model"),
        (["other", "--hidden", "100"], "blocks of 32"),
        (["other", "--heads", "3"], "multiple of kv_heads"),
        (["other", "--layers", "0"], "layers must be at least 1"),
        (["other", "--vocab", "100"], "vocab must be at least 258"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    before = sorted(home.rglob("*"))
    assert main(["models", "synth", *args, "--home", str(home)]) == 2
    assert words in capsys.readouterr().err
    assert sorted(home.rglob("*")) == before
