"""Finding, building, loading and sharing the library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import llmosd
from llmosd.errors import ModelError
from llmosd.runtime import native
from llmosd.runtime.native import build as recipe

WIDE = {"amx", "avx512vnni"}
VNNI = WIDE | {"avxvnni"}
x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="about x86-64")


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


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """The sets that this machine's compiler knows."""
    return list(recipe.known_sets(recipe.find_compiler()))


@x86
def test_each_set_uses_its_own_instructions(compiled: list[str]) -> None:
    """What no test can run on a processor without them can at least be read."""
    tool = shutil.which("objdump")
    if tool is None or not VNNI & set(compiled):
        pytest.skip("needs objdump and a compiler that knows VNNI")
    listing = subprocess.run([tool, "-d", recipe.library()], capture_output=True, text=True, check=True).stdout
    functions = re.split(r"\n\n[0-9a-f]+ <", listing)
    for isa in compiled:
        text = {bits: "".join(f for f in functions if f"{isa}9quantisedILi{bits}E" in f) for bits in (4, 8)}
        assert all(text.values()), isa
        assert all(("vpdpbusd" in code) == (isa in VNNI) for code in text.values()), isa
        whole = "".join(f for f in functions if f"llmos{len(isa)}{isa}" in f)
        assert ("%zmm" in whole) == (isa in WIDE), isa
        assert all((name in whole) == (isa == "amx") for name in ("tdpbsud", "tdpbssd", "ldtilecfg")), isa


@x86
@pytest.mark.parametrize(("flag", "isa"), [("-mavxvnni", "avxvnni"), ("-mamx-int8", "amx")])
def test_a_compiler_that_knows_no_set_builds_the_others(
    flag: str, isa: str, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old-c++"
    refuse = f'case "$*" in *{flag}*) echo "unrecognized option" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refuse}\nexec {" ".join(recipe.find_compiler())} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    assert list(recipe.known_sets(recipe.find_compiler())) == [one for one in compiled if one != isa]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package whose vector kernels drop the highest bit of a 4-bit code."""
    source = Path(llmosd.__file__).parent
    folder = tmp_path_factory.mktemp("damaged")
    copy = shutil.copytree(source, folder / "llmosd", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    masks = {"avx512": "_mm512_set1_epi8(15)", "avx2": "_mm256_set1_epi8(15)", "neon": "vdupq_n_s8(15)"}
    for name, mask in masks.items():
        header = copy / "runtime" / "native" / "kernels" / f"vector_{name}.h"
        text = header.read_text()
        assert mask in text
        header.write_text(text.replace(mask, mask.replace("15", "7")))
    return folder


def test_the_recipe_runs_by_path_without_the_package(damaged: Path) -> None:
    there = damaged / "llmosd" / "runtime" / "native"
    script = [sys.executable, "-I", str(there / "build.py")]
    built = subprocess.run(script, cwd=damaged, capture_output=True, text=True, check=True)
    assert Path(built.stdout.strip()) == (there / "lib" / recipe.library().name).resolve()


def test_kernels_that_fail_the_self_test_give_way_to_the_next(damaged: Path) -> None:
    found = native.status()
    assert found.path is not None
    runnable = native.load(found.path).llmos_instruction_sets().decode().split()
    if runnable == ["portable"]:
        pytest.skip("this processor has no other kernels")
    there = damaged / "llmosd" / "runtime" / "native"
    subprocess.run([sys.executable, "-I", there / "build.py"], cwd=damaged, capture_output=True, check=True)
    ask = "from llmosd.runtime import native; s = native.status(); print(s.available, s.isa, s.why, sep='\\n')"
    environment = {k: v for k, v in os.environ.items() if k != native.LIBRARY_VARIABLE} | {"PYTHONPATH": str(damaged)}
    told = subprocess.run([sys.executable, "-c", ask], env=environment, cwd=damaged, capture_output=True, text=True)
    assert told.stdout.splitlines()[:2] == ["True", "portable"], told.stderr
    assert "native operators for portable" in told.stdout
    assert all(f"not for {isa}: the self-test" in told.stdout for isa in runnable[:-1])


REGISTER = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
told = []

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
def create_status(code, message):
    told.append(message.decode())
    return 1

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
def get_api(version):
    return ctypes.addressof(table)

@ctypes.CFUNCTYPE(ctypes.c_void_p)
def version():
    return ctypes.addressof(words)

words = ctypes.create_string_buffer(sys.argv[2].encode())
table = (ctypes.c_void_p * 300)(ctypes.cast(create_status, ctypes.c_void_p).value)
base = (ctypes.c_void_p * 2)(*(ctypes.cast(one, ctypes.c_void_p).value for one in (get_api, version)))
library.RegisterCustomOps.restype = ctypes.c_void_p
assert library.RegisterCustomOps(None, ctypes.byref(base))
print(*told)
"""


@pytest.mark.parametrize("version", ["2.0.0", "1.19.2", "0.30", "unknown"])
def test_the_library_asks_who_calls_it(version: str) -> None:
    """Before anything else: the functions behind the first one might have moved."""
    command = [sys.executable, "-c", REGISTER, str(native.status().path), version]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == f"llmos: built for onnxruntime >= 1.20, < 2, not {version}"
