"""Which device is chosen and what is said of it; the pool that lies on a device, here in the host's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.config import Config
from llmosd.errors import ConfigError
from llmosd.hardware import gpus
from llmosd.runtime.device import CUDA_PROVIDER, choose_device
from llmosd.runtime.device_pool import DevicePool, attention_metadata
from llmosd.runtime.geometry import Geometry

NO_CUDA = CUDA_PROVIDER not in ort.get_available_providers()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"strict": True}, "strict"),
        ({"backend": "native"}, "native backend"),
        ({"weights": "float32"}, "float32 weights"),
        ({"kv_format": "int8"}, "int8"),
    ],
)
def test_what_only_the_cpu_can_do_stays_there(told: dict[str, Any], words: str) -> None:
    device, why = choose_device(Config(**told))
    assert device == "cpu" and words in why
    with pytest.raises(ConfigError, match=words) as error:
        choose_device(Config(device="cuda", **told))
    assert error.value.param == "device"


def test_what_suits_the_device_is_no_obstacle() -> None:
    assert not any("K and V" in choose_device(Config(kv_format=kind))[1] for kind in ("auto", "float16"))


def test_the_cpu_can_be_asked_for() -> None:
    assert choose_device(Config(device="cpu")) == ("cpu", "asked for")


@pytest.mark.skipif(not NO_CUDA, reason="onnxruntime has CUDA here")
def test_cuda_without_its_provider_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        choose_device(Config(device="cuda"))
    assert choose_device(Config())[0] == "cpu"


@pytest.mark.parametrize("visible", ["", "-1", "GPU-00000000-0000-0000-0000-000000000000", "1000"])
def test_a_card_that_cuda_would_not_see_is_none(visible: str) -> None:
    assert gpus.first_card({"CUDA_VISIBLE_DEVICES": visible}) is None


GEOMETRY = Geometry(3, 96, 3, 1, 32, 160, 261, 256, 1e4, 1e-6, None, ())
PAGES, PAGE_TOKENS = 5, 16


@pytest.fixture(scope="module")
def pool() -> DevicePool:
    return DevicePool(GEOMETRY, pages=PAGES, page_tokens=PAGE_TOKENS, device="cpu")


def test_a_pool_begins_as_zeros_of_the_operators_layout(pool: DevicePool) -> None:
    fresh = DevicePool(GEOMETRY, pages=PAGES, page_tokens=PAGE_TOKENS, device="cpu")
    names = [f"{kind}_cache.{layer}" for layer in range(3) for kind in ("key", "value")]
    assert [name for name, _ in fresh.inputs()] == names
    for _, value in fresh.inputs():
        assert value.shape() == [PAGES, PAGE_TOKENS, 1, 32] and not value.numpy().any()


@given(copies=st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1)), max_size=4))
def test_copying_pages_touches_the_targets_only(pool: DevicePool, copies: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    expected = [rng.normal(size=value.shape()).astype(np.float16) for _, value in pool.inputs()]
    for (_, value), array in zip(pool.inputs(), expected, strict=True):
        value.update_inplace(array)
    for source, target in copies:
        pool.copy_page(source, target)
        for array in expected:
            array[target] = array[source]
    for (_, value), array in zip(pool.inputs(), expected, strict=True):
        np.testing.assert_array_equal(value.numpy(), array)


@given(rows=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), min_size=1, max_size=8))
def test_the_operator_is_told_the_longest_of_a_step(rows: list[tuple[int, int]]) -> None:
    past = np.array([past for past, _ in rows], np.int32)
    ends = np.cumsum([0, *(new for _, new in rows)]).astype(np.int32)
    longest = max(past + new for past, new in rows)
    metadata = attention_metadata(ends, past)
    assert metadata.dtype == np.int32
    assert metadata.tolist() == [max(new for _, new in rows), longest, longest]
