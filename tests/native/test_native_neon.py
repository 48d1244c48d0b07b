"""The NEON kernels on other processors: compiled from the same source by the same recipe, and run by an emulator.

Skipped without a compiler for aarch64 (aarch64-linux-gnu-g++, or ziglang); run where there is qemu-aarch64 as well. On
an aarch64 machine all other tests of this folder are about these kernels.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import native_operators
import numpy as np
import pytest
import test_native_linear as linear
from emulated import Emulated
from native_operators import Geometry, Pool, attention_reference, keys_and_values, tokens
from test_native_attention import BOUND, assert_stored

from llmosd.runtime.native import build as recipe
from llmosd.types import KvFormat

COMPILERS = [["aarch64-linux-gnu-g++"], [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]]
SETS = ["neon_dot", "neon", "portable"]
AARCH64 = 183  # e_machine in an ELF header
LINEAR = [  # tests that hold these operators to float64
    linear.test_qlinear_is_within_the_rounding_of_its_activations,
    linear.test_qlinear_is_exact_but_for_float32_sums,
    linear.test_a_norm_comes_before_the_product,
    linear.test_a_gate_and_a_residual_come_after_it_as_they_would_alone,
    linear.test_linear_matches_float64,
    linear.test_swiglu_matches_float64,
]

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


@pytest.fixture(scope="module")
def program(compiler: list[str], built: Path) -> Path:
    program, source = built / "runtime", Path(__file__).with_name("emulated_runtime.cpp")
    flags = [*recipe.FLAGS, "-O1", "-static", "-pthread", f"-I{recipe.HERE}"]
    recipe.run([*compiler, *flags, str(source), *map(str, built.glob("*.o")), "-o", str(program)])
    return program


@pytest.fixture(params=["neon_dot", "neon"])
def emulated(request: pytest.FixtureRequest, program: Path) -> Emulated:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64")
    return Emulated(emulator, program, request.param)


def test_the_whole_library_is_built_by_the_same_recipe(compiler: list[str], built: Path) -> None:
    assert list(recipe.known_sets(compiler)) == SETS
    header = (built / "libllmos.so").read_bytes()[:20]
    assert int.from_bytes(header[18:20], "little") == AARCH64
    assert recipe.is_current(built / "libllmos.so")


@pytest.mark.parametrize("test", LINEAR, ids=lambda test: test.__name__)
def test_neon_is_within_the_bounds_of_all(
    test: Callable[[], None], emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "run", emulated.run)
    test()


@pytest.mark.parametrize("kv", get_args(KvFormat))
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "page_tokens"), [(2, 2, 32, 16), (6, 2, 80, 64), (7, 1, 256, 32)]
)
def test_attention_matches_float64(
    emulated: Emulated,
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    kv_heads: int,
    size: int,
    page_tokens: int,
    kv: KvFormat,
) -> None:
    """A prompt in two chunks, then a token at a time, by threads that share it."""
    monkeypatch.setattr(native_operators, "run", emulated.run)
    g = Geometry(heads, kv_heads, size, page_tokens, kv)
    qkv, pool, table = tokens(g, 140, np.random.default_rng(0)), Pool(g, 11), list[int]()
    out = []
    for begin, end in ((0, 90), (90, 138), (138, 139), (139, 140)):
        pool.grow(table, end)
        out.append(pool.step([(qkv[begin:end], begin, table)], threads=3))
    stored = pool.stored(table, 140)
    for exact, kept in zip(keys_and_values(g, qkv), stored, strict=True):
        assert_stored(g, exact, kept)
    assert np.abs(np.concatenate(out) - attention_reference(g, qkv, stored)).max() <= BOUND


def test_what_is_wrong_is_refused(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_operators, "run", emulated.run)
    pool = Pool(Geometry(4, 2, 32, 16), 6)
    with pytest.raises(ValueError, match="a page id is out of range"):
        pool.step([(tokens(pool.geometry, 2, np.random.default_rng(0)), 0, [6])], threads=2)
    assert np.isnan(pool.keys).all()
