"""A session costs nothing that a step does not need: no rebinding of what is bound, no spinning once it has run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from llmosd.runtime import native
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.tokenizer import Tokenizer, tokenizer_json, tokenizer_meta
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import RequestSpec, Sampling
from tests.runtime import tiny

PAGES, PAGE_TOKENS = 16, 64
TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(not native.status().available, reason="the native operators cannot be built here")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return GgufFile(tiny.write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", Kind.Q4_1))


def load(source: GgufFile, folder: Path) -> PagedModel:
    sizes = {"pages": PAGES, "page_tokens": PAGE_TOKENS}
    return tiny.load(folder / "model.onnx", source, "native", "file", **sizes, spin=True, kv_format="int8")


@pytest.fixture
def model(source: GgufFile, tmp_path: Path) -> Iterator[PagedModel]:
    model = load(source, tmp_path)
    yield model
    model.close()


def test_steps_of_one_shape_bind_nothing(model: PagedModel, source: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are written in place, so what was bound once stays bound; and no further array is made."""
    tokenizer = Tokenizer(tokenizer_json(source.tokenizer), tokenizer_meta(source.tokenizer, source.geometry.eos))
    kernel = Kernel(Limits(8, 256, 8, tiny.CONTEXT, PAGE_TOKENS, PAGES), POLICIES["fcfs"]())
    executor = OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns)
    bound = list[str]()
    for name in ("bind_ortvalue_input", "bind_ortvalue_output"):
        original = getattr(model._session._binding, name)
        monkeypatch.setattr(
            model._session._binding, name, lambda which, *args, to=original: (bound.append(which), to(which, *args))
        )

    def steps(count: int) -> None:
        for _ in range(count):
            plan = kernel.plan(0)
            assert plan is not None
            kernel.commit(plan, executor.execute(plan), 0)

    for number in range(8):
        sampling = Sampling(temperature=number % 2, top_p=0.9, presence_penalty=0.1, max_tokens=40, ignore_eos=True)
        kernel.submit(RequestSpec(str(number), "m", list(range(5, 15)), sampling), 0)
    steps(2)
    assert {"token_ids", "past_lengths", "page_table", "streams", "logits", "tokens"} <= set(bound)
    bound.clear()
    steps(20)
    assert bound == []


def cpu_seconds(threads: set[str]) -> float:
    return sum(int((TASKS / one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_that_wait_awake_stop_within_a_second(source: GgufFile, tmp_path: Path) -> None:
    before = {task.name for task in TASKS.iterdir()}
    model = load(source, tmp_path)
    started = {task.name for task in TASKS.iterdir()} - before
    assert started, "a session of two threads has one of its own"
    ids, table = np.arange(5, 69), np.zeros((1, 1), np.int32)
    for _ in range(20):
        model.run(ids, np.array([0, 64], np.int32), np.zeros(1, np.int32), table, np.array([63]))
    assert cpu_seconds(started) > 0
    time.sleep(1)
    stopped = cpu_seconds(started)
    time.sleep(0.5)
    assert cpu_seconds(started) - stopped < 0.05, "a thread that spins would have used most of half a second"
    model.close()
