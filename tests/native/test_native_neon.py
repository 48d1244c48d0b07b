"""The NEON kernels on other processors: compiled from the same source by the same recipe, and run by an emulator.

Skipped without a compiler for aarch64 (aarch64-linux-gnu-g++, or ziglang); run where there is qemu-aarch64 as well. On
an aarch64 machine all other tests of this folder are about these kernels.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmosd.runtime.native import build as recipe

COMPILERS = [["aarch64-linux-gnu-g++"], [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]]
SETS = ["neon_dot", "neon", "portable"]
AARCH64 = 183  # e_machine in an ELF header

pytestmark = [
    pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="this processor runs them itself"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def compiler() -> Iterator[list[str]]:
    """One for aarch64, as what the recipe finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "aarch64")
        found = [one for one in COMPILERS if shutil.which(one[0]) and recipe.compiles(one, [], "int main() {}")]
        if not found:
            pytest.skip("no compiler for aarch64: aarch64-linux-gnu-g++, or ziglang")
        patch.setattr(recipe, "find_compiler", lambda: found[0])
        patch.setattr(recipe, "OPTIMISE", ["-O1"])
        yield found[0]


@pytest.fixture(scope="module")
def built(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the whole library was built in."""
    folder = tmp_path_factory.mktemp("aarch64")
    recipe.compile_into(folder, folder / "libllmos.so", sanitize=False)
    return folder


def test_the_whole_library_is_built_by_the_same_recipe(compiler: list[str], built: Path) -> None:
    assert list(recipe.known_sets(compiler)) == SETS
    header = (built / "libllmos.so").read_bytes()[:20]
    assert int.from_bytes(header[18:20], "little") == AARCH64
    assert recipe.is_current(built / "libllmos.so")


def test_neon_agrees_with_plain_code(compiler: list[str], built: Path) -> None:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64")
    program, source = built / "compare", Path(__file__).with_name("compare_kernels.cpp")
    sets = " ".join(f"LLMOS_SET({isa})" for isa in SETS)
    kernels = [str(built / f"kernels-{isa}.o") for isa in SETS]
    flags = [*recipe.FLAGS, "-O1", "-static", f"-I{recipe.HERE}", f"-DLLMOS_SETS={sets}"]
    recipe.run([*compiler, *flags, str(source), *kernels, "-o", str(program)])
    compared = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert (compared.returncode, compared.stdout.split()) == (0, SETS), compared.stdout
