"""Finding, building, loading and sharing the library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from native_operators import Geometry, Pool, tokens

from llmosd.errors import ModelError
from llmosd.runtime import native
from llmosd.runtime.native import build as recipe


@pytest.fixture
def fresh_status(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    native.status.cache_clear()
    monkeypatch.setattr(native, "status", native.status.__wrapped__)
    return monkeypatch


def test_status_names_the_instruction_set_and_the_compiler() -> None:
    found = native.status()
    assert found.available
    assert found.isa in recipe.instruction_sets()
    assert found.compiler
    assert found.isa in found.why


def test_a_missing_library_says_how_to_build_it(fresh_status: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_status.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    found = native.status()
    assert not found.available
    assert "build.py" in found.why
    with pytest.raises(ModelError, match=r"build\.py"):
        native.register(onnxruntime.SessionOptions())


def test_a_library_of_other_sources_is_refused(fresh_status: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stale = tmp_path / "stale.so"
    stale.write_bytes(recipe.library().read_bytes().replace(recipe.source_hash().encode(), b"0" * 16))
    fresh_status.setenv(native.LIBRARY_VARIABLE, str(stale))
    assert "other sources" in native.status().why


def test_a_damaged_library_is_refused(fresh_status: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"not a library " + recipe.source_hash().encode())
    fresh_status.setenv(native.LIBRARY_VARIABLE, str(damaged))
    assert "do not work here" in native.status().why


def test_another_runtime_is_refused(fresh_status: pytest.MonkeyPatch) -> None:
    fresh_status.setattr(onnxruntime, "__version__", "2.0.0")
    assert "onnxruntime 2.0.0" in native.status().why


def test_building_again_keeps_the_library() -> None:
    before = recipe.library().stat().st_mtime_ns
    assert recipe.build() == recipe.library()
    assert recipe.library().stat().st_mtime_ns == before


def test_a_failed_build_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe, "library", lambda sanitize=False: tmp_path / "lib" / "new.so")
    monkeypatch.setattr(recipe, "compilers", lambda: [["/nonexistent/c++"]])
    with pytest.raises(recipe.BuildError, match=r"nonexistent.*ziglang"):
        recipe.build()
    assert list((tmp_path / "lib").iterdir()) == []


def test_the_recipe_runs_by_path_without_the_package(tmp_path: Path) -> None:
    copy = shutil.copytree(recipe.HERE, tmp_path / "native")
    script = subprocess.run(
        [sys.executable, "-I", copy / "build.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(script.stdout.strip()) == (copy / "lib" / recipe.library().name).resolve()


def test_sessions_share_the_process() -> None:
    """Two sessions with pools of their own, each run from several threads at once, do not disturb each other."""
    geometries = [Geometry(9, 3, 64, 64, kv="float16"), Geometry(4, 4, 128, 16)]
    rng = np.random.default_rng(0)
    inputs = [tokens(g, 200, rng) for g in geometries]

    def once(i: int) -> bytes:
        g = geometries[i % 2]
        pool = Pool(g, 16, seed=i)
        table: list[int] = []
        pool.grow(table, 200)
        return pool.step([(inputs[i % 2], 0, table)], threads=2).tobytes()

    expected = [once(0), once(1)]
    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(once, range(24))):
            assert result == expected[i % 2]
