"""Where tests keep the real model between runs, and its id."""

from __future__ import annotations

import os
from pathlib import Path

MODEL_ID = "smollm2-135m-instruct"


def cached_home() -> Path:
    """`$LLMOS_TEST_HOME`, else a directory under the checkout that git ignores."""
    return Path(os.environ.get("LLMOS_TEST_HOME", Path(__file__).parents[1] / ".cache" / "home"))
