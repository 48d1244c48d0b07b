"""A wheel built from this checkout works in an empty folder, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from llmosd.runtime import native

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, home: Path, *command: str) -> str:
    """A module of the wheel, run in an empty folder; dependencies come from this environment, the checkout does not."""
    path = os.pathsep.join((str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    environment = os.environ | {"PYTHONPATH": path, "LLMOS_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-S", "-m", *command], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_its_commands_find_their_data(site: Path, tmp_path: Path) -> None:
    (model,) = json.loads(run(site, tmp_path, "llmosd", "models", "list", "--json"))
    assert model["id"] == "smollm2-135m-instruct"
    where = run(site, tmp_path, "llmosd", "doctor", "--port", "0")
    assert str(ROOT / "llmosd") not in where


def test_it_holds_migrations_and_the_monitor(site: Path) -> None:
    assert list((site / "llmosd" / "migrations").glob("*.sql"))
    assert (site / "llmos_top" / "app.tcss").is_file()
    (points,) = site.glob("*.dist-info/entry_points.txt")
    assert {"llmosd", "llmos-top"} <= {line.split(" = ")[0] for line in points.read_text().splitlines()}


@pytest.mark.skipif(not native.status().available, reason="the native operators are not built here")
def test_its_native_operators_work_and_its_tag_names_the_platform(site: Path, tmp_path: Path) -> None:
    findings = json.loads(run(site, tmp_path, "llmosd", "doctor", "--port", "0", "--json"))
    (native_finding,) = [finding for finding in findings if finding["check"] == "native operators"]
    assert native_finding["state"] == "ok", native_finding["text"]
    (metadata,) = site.glob("*.dist-info/WHEEL")
    assert f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}" in metadata.read_text()
