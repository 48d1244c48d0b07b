"""Fixtures that more than one folder of tests needs: the real model, imported once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmosd.runtime.catalogue import manifest
from llmosd.runtime.importer import pull
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.paged_model import choose_backend

MODEL_ID = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A data directory with the real model, kept between runs (`$LLMOS_TEST_HOME`, else `.cache/home`).

    Tests must not write to it but through the importer, whose lock makes parallel runs safe.
    """
    home = Path(os.environ.get("LLMOS_TEST_HOME", Path(__file__).parents[1] / ".cache" / "home"))
    backend, _ = choose_backend("auto", strict=False)
    pull(manifest(MODEL_ID), home, backend, lambda stage, done, total: None)
    return home


@pytest.fixture(scope="session")
def model(model_home: Path) -> InstalledModel:
    return find(model_home, MODEL_ID)
