"""What a backend's pages are like where nothing else is asked for, and what it refuses."""

from __future__ import annotations

import pytest

from llmosd.application.blueprint import limits_of
from llmosd.config import Config
from llmosd.errors import ConfigError, ModelError
from llmosd.runtime.backend import LARGEST_PAGE, choose_kv_format
from llmosd.runtime.geometry import Geometry

GEOMETRY = Geometry(2, 64, 2, 1, 32, 128, 100, 1024, 10000.0, 1e-5, 0, (1,))


def test_the_format_of_k_and_v_is_what_suits_the_operators() -> None:
    assert [choose_kv_format(backend, "auto") for backend in ("native", "gather", "cuda")] == [
        "int8", "float16", "float16",
    ]  # fmt: skip
    assert choose_kv_format("gather", "float32") == "float32"
    with pytest.raises(ModelError, match="int8"):
        choose_kv_format("gather", "int8")


def test_pages_that_the_native_operators_cannot_read_are_refused_at_once() -> None:
    assert limits_of(Config(page_tokens=LARGEST_PAGE, pages=8), GEOMETRY, "native").page_tokens == LARGEST_PAGE
    with pytest.raises(ConfigError, match="for GPUs") as error:
        limits_of(Config(page_tokens=256, pages=8), GEOMETRY, "native")
    assert error.value.param == "page_tokens"
