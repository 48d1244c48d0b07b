"""A model of quite another geometry is imported, answers, and stays within the memory that is foretold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmosd.application.cli import main
from llmosd.runtime import native
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.integrity import damaged
from llmosd.runtime.synthetic import install

OTHER = Geometry(3, 320, 8, 1, 128, 672, 1031, 500, rope_theta=500_000.0, norm_eps=1e-5, bos=0, eos=(1,))

pytestmark = pytest.mark.skipif(not native.status().available, reason="the native operators cannot be built here")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InstalledModel:
    """Import verifies the graph against the numpy reference."""
    return install(OTHER, tmp_path_factory.mktemp("home"), "other", tied=request.param)


def test_another_geometry_is_imported_whole(other: InstalledModel) -> None:
    assert other.geometry == OTHER
    assert not damaged(other)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_the_formula(other: InstalledModel, tmp_path: Path) -> None:
    _check(other, tmp_path / "measured.json")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_real_model_stays_within_the_formula(model: InstalledModel, tmp_path: Path) -> None:
    _check(model, tmp_path / "measured.json")


def _check(model: InstalledModel, out: Path) -> None:
    """In a process of its own, for this one has grown already."""
    home = str(model.path.parents[1])
    subprocess.run(
        [sys.executable, "bench/footprint.py", "--home", home, "--model", model.id, "--json", str(out)],
        cwd=Path(__file__).parents[2],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = json.loads(out.read_text())
    pool = found["pages"] * found["foretold_page"]
    assert pool / 2 < found["private"] <= found["foretold_private"]  # part of a small pool lies in memory freed before
    assert found["mapped"] <= found["foretold_weights"] + 1


def test_show_prints_the_formula(other: InstalledModel, capsys: pytest.CaptureFixture[str]) -> None:
    home = other.path.parents[1]
    assert main(["models", "show", other.id, "--home", str(home), "--pages", "7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    memory = shown["memory"]
    assert (shown["head_dim"], memory["pages"]) == (128, 7)
    assert memory["total"] == memory["weights"] + memory["workspace"] + 7 * memory["page"]
    assert main(["models", "show", other.id, "--home", str(home)]) == 0
    assert "pages × bytes per page" in capsys.readouterr().out
    assert find(home, other.id).graphs == ("native",)
