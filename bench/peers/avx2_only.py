"""Engines as they are on a processor with AVX2 and nothing beyond it: by far the most common one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llmosd.runtime.native.build import compilers

SOURCE = Path(__file__).with_name("avx2_only.c")
LLAMA = "llama-avx2"
"""Where the recipe puts a llama.cpp for such processors: it chooses its instructions when it is built."""


def environment(directory: Path) -> dict[str, str]:
    """What a child process needs to see no more than AVX2. Exits where that cannot be had."""
    libraries = directory.absolute() / LLAMA / "bin"
    if not libraries.exists():
        sys.exit(f"{libraries} is missing: run install.py with --avx2")
    return {"LD_PRELOAD": str(preload(directory.absolute())), "LLAMA_CPP_LIB_PATH": str(libraries)}


def preload(directory: Path) -> Path:
    """The library, built in `directory` and tried. Exits where nothing can be hidden."""
    library = directory / "avx2_only.so"
    compiler = compilers()[0]
    subprocess.run([*compiler, "-x", "c", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
    seen = subprocess.run(
        [sys.executable, "-c", "from llmosd.runtime import native; print(native.status().isa)"],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    if seen.stdout.strip() != "avx2":
        sys.exit(f"AVX-512 cannot be hidden here: {seen.stderr.strip() or seen.stdout.strip()}")
    return library
