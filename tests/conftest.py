"""Fixtures that more than one folder of tests needs: the real model, imported once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmosd.runtime.catalogue import manifest
from llmosd.runtime.importer import pull
from llmosd.runtime.installed import InstalledModel, find
from llmosd.runtime.paged_model import choose_backend
from tests.model_home import MODEL_ID, cached_home

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A data directory with the real model, kept between runs.

    Tests must not write to it but through the importer, whose lock makes parallel runs safe.
    """
    home = cached_home()
    backend, _ = choose_backend("auto", strict=False)
    pull(manifest(MODEL_ID), home, backend, lambda stage, done, total: None)
    return home


@pytest.fixture(scope="session")
def model(model_home: Path) -> InstalledModel:
    return find(model_home, MODEL_ID)
