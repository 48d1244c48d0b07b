"""Run as a script: import a model into a home and name each stage of it, so that a test can kill it in the middle."""

from __future__ import annotations

import sys
from pathlib import Path

from llmosd.runtime.catalogue import manifest
from llmosd.runtime.importer import import_model
from tests.model_home import MODEL_ID

if __name__ == "__main__":
    home, source = map(Path, sys.argv[1:])
    import_model(manifest(MODEL_ID), source, home, "gather", lambda stage, done, total: print(stage, flush=True))
