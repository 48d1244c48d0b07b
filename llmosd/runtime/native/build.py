"""Compile the native operators into ``lib/`` beside this file.

Standard library only, so that `python build.py` works on its own, before anything is installed.

The kernels are compiled once per instruction set and chosen at run time, so one library serves every processor of an
architecture. The hash of the sources is compiled in: a library that does not match them is rebuilt, or refused at load.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

# No -ffast-math: linked into a shared library it changes the rounding of the whole process. No contraction: a kernel
# says itself where it multiplies and adds at once, so that its bits do not depend on the compiler's choice.
FLAGS = shlex.split("-std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra")
FLAGS += shlex.split("-ffp-contract=off -fno-math-errno -fno-trapping-math")
OPTIMISE = ["-O3"]
SANITIZE = ["-O2", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl"]
X86_PROBE = "#include <immintrin.h>\n__m256i probe(__m256i x) {{ return {}(x, x, x); }}\n"
AMX_PROBE = """#include <immintrin.h>
void probe() {
  asm volatile("tilezero %tmm0; tdpbsud %tmm3, %tmm2, %tmm0; tdpbf16ps %tmm3, %tmm2, %tmm0; tilerelease");
  asm volatile("vfmadd213ph %zmm0, %zmm0, %zmm0");
}
"""
# What a compiler must be able to compile, beside knowing the flags, to build a set that is not for every compiler.
PROBES = {
    "amx": AMX_PROBE,
    "avx512vnni": X86_PROBE.format("_mm256_dpbusd_epi32"),
    "avxvnni": X86_PROBE.format("_mm256_dpbusd_avx_epi32"),
    "neon_dot": "#include <arm_neon.h>\nint32x4_t probe(int32x4_t s, int8x16_t x) { return vdotq_s32(s, x, x); }\n",
}
# Flags for compilers that do not know the usual ones: Zig's has no -march, and -mcpu=generic+dotprod is nothing to GCC.
OTHERWISE = {"neon_dot": [["-mcpu=generic+dotprod"]]}


class BuildError(RuntimeError):
    """No compiler was found, or the one that was found failed; the message says what was tried."""


def library(sanitize: bool = False) -> Path:
    """Where the compiled library lies, whether or not it has been built."""
    return HERE / "lib" / f"libllmos{'-sanitize' if sanitize else ''}{SUFFIX}"


def source_hash() -> str:
    """Identifies the C++ sources and this recipe."""
    digest = hashlib.sha256()
    for path in [*sources(), *sorted(HERE.rglob("*.h")), HERE / "build.py"]:
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(target: Path) -> bool:
    """Whether the library at `target` was built from the sources beside this file."""
    return target.exists() and source_hash().encode() in target.read_bytes()


def sources() -> list[Path]:
    return sorted(HERE.rglob("*.cpp"))


def instruction_sets() -> dict[str, list[str]]:
    """Compiler flags of each set of kernels for this architecture, the best set first."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return {
            "amx": [*AVX2, *AVX512, "-mavx512vnni", "-mavx512dq", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
            "avx512vnni": [*AVX2, *AVX512, "-mavx512vnni"],
            "avxvnni": [*AVX2, "-mavxvnni"],
            "avx2": AVX2,
            "portable": [],
        }
    if machine in ("aarch64", "arm64"):
        return {"neon_dot": ["-march=armv8.2-a+dotprod"], "neon": [], "portable": ["-DLLMOS_PORTABLE"]}
    return {"portable": []}


def known_sets(compiler: list[str]) -> dict[str, list[str]]:
    """The instruction sets that a compiler and its assembler know: one too old for a set goes without it."""
    known = {}
    for isa, flags in instruction_sets().items():
        for way in (flags, *OTHERWISE.get(isa, [])):
            if isa not in PROBES or compiles(compiler, way, PROBES[isa]):
                known[isa] = way
                break
    return known


def compiles(compiler: list[str], flags: list[str], text: str) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.cpp"
        probe.write_text(text)
        command = [*compiler, *flags, "-c", str(probe), "-o", str(probe.with_suffix(".o"))]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compilers() -> list[list[str]]:
    """Commands to try, best first: $CXX, the system's compilers, the one in the `ziglang` wheel."""
    found = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else []
    found += [[path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))]
    found.append([sys.executable, "-m", "ziglang", "c++", "-mcpu=baseline"])  # its default is this very processor
    return found


def find_compiler() -> list[str]:
    tried = []
    for command in compilers():
        try:
            probe = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        except OSError as error:
            tried.append(f"{shlex.join(command)} ({error})")
            continue
        if probe.returncode == 0:
            return command
        tried.append(f"{shlex.join(command)} (exit {probe.returncode})")
    raise BuildError(f"no C++ compiler: tried {', '.join(tried)}; install g++ or clang++, or `pip install ziglang`")


def objects(directory: Path, sets: dict[str, list[str]]) -> list[tuple[Path, Path, list[str]]]:
    """Every (source, object, flags) to compile: the kernels once per instruction set, all else once."""
    facts = [f'-DLLMOS_SOURCE_HASH="{source_hash()}"', f"-DLLMOS_SETS={' '.join(f'LLMOS_SET({isa})' for isa in sets)}"]
    jobs = []
    for source in sources():
        if source.parent.name == "kernels":
            for isa, flags in sets.items():
                jobs.append((source, directory / f"{source.stem}-{isa}.o", [*flags, f"-DLLMOS_ISA={isa}"]))
        else:
            jobs.append((source, directory / f"{source.stem}.o", facts))
    return jobs


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{result.stderr[-4000:]}")


def compile_into(directory: Path, target: Path, sanitize: bool) -> None:
    compiler = find_compiler()
    flags = [*FLAGS, *(SANITIZE if sanitize else OPTIMISE)]
    jobs = objects(directory, known_sets(compiler))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda job: run([*compiler, *flags, *job[2], "-c", str(job[0]), "-o", str(job[1])]), jobs):
            pass
    link = SANITIZE if sanitize else []
    run([*compiler, "-shared", *link, *(str(job[1]) for job in jobs), "-o", str(target), "-pthread"])


def build(force: bool = False, sanitize: bool = False) -> Path:
    """Compile the library unless it is there and matches its sources; the result appears whole or not at all."""
    target = library(sanitize)
    if not force and is_current(target):
        return target
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            finished = Path(scratch) / target.name
            compile_into(Path(scratch), finished, sanitize)
            finished.replace(target)
    except OSError as error:
        raise BuildError(f"{target.parent} cannot be written: {error}") from error
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the native operators.")
    parser.add_argument("--force", action="store_true", help="compile even if the library is up to date")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behaviour sanitizers")
    options = parser.parse_args()
    try:
        print(build(options.force, options.sanitize))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
