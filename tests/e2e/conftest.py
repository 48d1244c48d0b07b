from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from started import Daemon, make_home, started


@pytest.fixture
def home(tmp_path: Path, model_home: Path) -> Path:
    return make_home(tmp_path, model_home)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory, model_home: Path) -> Iterator[Daemon]:
    """One daemon for all tests that leave it as they found it."""
    with started(make_home(tmp_path_factory.mktemp("daemon"), model_home)) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0) as client:
        yield client
