"""Engines that are stopped when their test is over, and who listens to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from engine_world import Listener

from llmosd.application.engine import Build, ThreadEngine


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def launch(listener: Listener) -> Iterator[Callable[[Build], ThreadEngine]]:
    """Start an engine from what builds its kernel and executor."""
    engines: list[ThreadEngine] = []

    def launched(build: Build) -> ThreadEngine:
        engine = ThreadEngine(build, listener)
        engine.start()
        engines.append(engine)
        return engine

    yield launched
    for engine in engines:
        engine.stop(drain=False)
        assert engine.join(timeout=60)
