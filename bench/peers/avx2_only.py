"""Engines as they are on a processor with AVX2 and nothing beyond it: by far the most common one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("avx2_only.c")
LLAMA = "llama-avx2"
"""Where the recipe puts a llama.cpp for such processors: it chooses its instructions when it is built."""


def environment(directory: Path) -> dict[str, str]:
    """What a child process needs to see no more than AVX2. Exits where that cannot be had."""
    libraries = directory.absolute() / LLAMA / "bin"
    if not libraries.exists():
        sys.exit(f"{libraries} is missing: run install.py with --avx2")
    preloaded = directory.absolute() / "avx2_only.so"
    subprocess.run([shutil.which("cc") or "gcc", "-O2", "-shared", "-fPIC", SOURCE, "-o", preloaded], check=True)
    found = {"LD_PRELOAD": str(preloaded), "LLAMA_CPP_LIB_PATH": str(libraries)}
    seen = subprocess.run(
        [sys.executable, "-c", "from llmosd.runtime import native; print(native.status().isa)"],
        env=os.environ | found,
        capture_output=True,
        text=True,
        check=False,
    )
    if seen.stdout.strip() != "avx2":
        sys.exit(f"AVX-512 cannot be hidden here: {seen.stderr.strip() or seen.stdout.strip()}")
    return found
