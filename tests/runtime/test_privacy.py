"""Nothing about use is recorded or sent by the libraries underneath."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_runtime_keeps_no_usage_database(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "import llmosd.runtime.session as session; session.ort.SessionOptions()"
    subprocess.run([sys.executable, "-c", code], env=kept | home, check=True)
    assert list(tmp_path.rglob("*")) == []
