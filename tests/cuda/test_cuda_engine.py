"""The real model on a real GPU; skipped where ONNX Runtime or the machine has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmosd.config import Config
from llmosd.errors import ConfigError, StepError
from llmosd.runtime.backend import best_page_tokens
from llmosd.runtime.device import choose_device
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.reference import Reference
from tests.runtime.stepping import Stream, prefill, step

PAGES = 8
CASES = json.loads((Path(__file__).parents[1] / "runtime" / "continuations.json").read_text())
ERROR = 0.1  # logits: the float16 graph's largest difference to float32 was 0.07 in 256 positions of English

try:
    choose_device(Config(device="cuda"))
except ConfigError as error:
    pytestmark = pytest.mark.skip(reason=error.message)
else:
    pytestmark = pytest.mark.timeout(400)


def load(model: InstalledModel, page_tokens: int) -> PagedModel:
    ensure_graph(model, "cuda", "file", lambda stage, done, total: None)
    return PagedModel.load(
        model, backend="cuda", weights="file", pages=PAGES, page_tokens=page_tokens, threads=1, spin=False
    )


@pytest.fixture(scope="module", params=[0, 64], ids=["flash page", "small page"])
def engine(request: pytest.FixtureRequest, model: InstalledModel) -> Iterator[PagedModel]:
    """With pages that flash attention takes, and with smaller ones, which other kernels read."""
    engine = load(model, request.param or best_page_tokens("cuda", model.geometry))
    yield engine
    engine.close()


def tokens(case: dict[str, list[int]]) -> list[int]:
    return case["prompt"] + case["continuation"][:-1]


@pytest.fixture(scope="module")
def expected(model: InstalledModel) -> list[NDArray[np.float32]]:
    reference = Reference(GgufFile(model.source))
    return [reference.logits(tokens(case)) for case in CASES[:3]]


def test_logits_are_those_of_the_float32_reference(engine: PagedModel, expected: list[NDArray[np.float32]]) -> None:
    for case, reference in zip(CASES, expected, strict=False):
        logits = prefill(engine, tokens(case), [5, 2, 7], sizes=(20, 1, 1))
        assert np.abs(logits - reference).max() < ERROR


def test_company_changes_little(engine: PagedModel) -> None:
    alone = [prefill(engine, tokens(case), [n, n + 4]) for n, case in enumerate(CASES[:3])]
    streams = [Stream(tokens(case), [n, n + 4]) for n, case in enumerate(CASES[:3])]
    parts = [step(engine, [(stream, 9 + n) for n, stream in enumerate(streams)])]
    while all(stream.past < len(stream.tokens) for stream in streams):
        parts.append(step(engine, [(stream, 1) for stream in streams]))
    for n, rows in enumerate(zip(*parts, strict=True)):
        together = np.concatenate(rows)
        assert np.abs(together - alone[n][: len(together)]).max() < ERROR


def test_a_copied_page_is_as_good_as_the_original(engine: PagedModel) -> None:
    prompt = tokens(CASES[0])[:40]
    prefill(engine, prompt[:30], [3])
    engine.copy_page(3, 6)
    original = step(engine, [(Stream(prompt, [3], past=30), 10)])[0]
    copied = step(engine, [(Stream(prompt, [6], past=30), 10)])[0]
    np.testing.assert_array_equal(original, copied)


def test_steps_of_one_shape_read_what_is_new_in_their_arrays(engine: PagedModel) -> None:
    """The packer writes each step into the same arrays: what was copied to the device at first must not stay."""
    ids, table = np.array([5], np.int64), np.array([[1]], np.int32)
    ends, past, rows = np.array([0, 1], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int64)
    first = engine.run(ids, ends, past, table, rows).copy()
    ids[0] = 900
    assert np.abs(engine.run(ids, ends, past, table, rows) - first).max() > 1


@pytest.mark.parametrize("page", [-1, PAGES])
def test_a_page_outside_the_pool_fails_the_step(engine: PagedModel, page: int) -> None:
    with pytest.raises(StepError):
        step(engine, [(Stream([1, 2, 3], [page]), 3)])
