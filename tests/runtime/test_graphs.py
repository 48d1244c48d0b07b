"""Every graph variant, on small Llamas of several shapes and formats, computes what the numpy reference does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.errors import ModelError, StepError
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.paged_model import Backend, PagedModel, choose_backend
from llmosd.runtime.reference import Reference
from llmosd.runtime.tokenizer import Tokenizer, tokenizer_json, tokenizer_meta
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import KvFormat, Output, RequestSpec, Sampling, WeightFormat
from tests.runtime import tiny
from tests.runtime.stepping import Stream, poison, prefill, step

PAGES, PAGE_TOKENS = 24, 16
VARIANTS = [("native", "file"), ("native", "float32"), ("gather", "file"), ("gather", "float32")]


def load(
    path: Path, source: GgufFile, backend: Backend, weights: WeightFormat, *, kv_format: KvFormat = "float32"
) -> PagedModel:
    graph = path.with_name(f"{backend}-{weights}.onnx")
    sizes = {"pages": PAGES, "page_tokens": PAGE_TOKENS}
    return tiny.load(graph, source, backend, weights, **sizes, kv_format=kv_format)


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, len(tiny.TOKENS), count)]


@pytest.mark.parametrize(("backend", "weights"), VARIANTS)
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16])
def test_logits_are_those_of_the_reference(kind: Kind, backend: Backend, weights: WeightFormat, tmp_path: Path) -> None:
    source = GgufFile(tiny.write_tiny(tmp_path / "tiny.gguf", kind, tied=kind is not Kind.Q4_0))
    model = load(tmp_path / "tiny.gguf", source, backend, weights)
    prompt = tokens(70)
    expected = Reference(source).logits(prompt)
    logits = prefill(model, prompt, [5, 2, 9, 0, 7], sizes=(1, 30, 16))
    error = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    assert error < (1e-5 if weights == "float32" else 0.08)  # activations in 8 bits


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GgufFile, Reference]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    source = GgufFile(tiny.write_tiny(path, Kind.Q4_1, value_kind=Kind.Q8_0))
    return path, source, Reference(source)


@pytest.fixture(scope="module", params=["native", "gather"])
def exact(request: pytest.FixtureRequest, small: tuple[Path, GgufFile, Reference]) -> PagedModel:
    return load(small[0], small[1], request.param, "float32")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_batching_chunking_and_paging_gives_the_same_logits(
    exact: PagedModel, small: tuple[Path, GgufFile, Reference], data: st.DataObject
) -> None:
    """Random streams, fed in random chunks in random company, in shuffled pages of a pool full of NaN."""
    poison(exact)
    free = data.draw(st.permutations(range(PAGES)))
    streams = []
    for seed in range(data.draw(st.integers(1, 4))):
        length = data.draw(st.integers(1, 5 * PAGE_TOKENS))
        count = -(-length // PAGE_TOKENS)
        streams.append(Stream(tokens(length, seed), free[:count]))
        free = free[count:]
    seen: list[list[np.ndarray]] = [[] for _ in streams]
    while waiting := [n for n, stream in enumerate(streams) if stream.past < len(stream.tokens)]:
        chosen = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        sizes = [data.draw(st.integers(1, len(streams[n].tokens) - streams[n].past)) for n in chosen]
        rows = step(exact, [(streams[n], size) for n, size in zip(chosen, sizes, strict=True)])
        for n, part in zip(chosen, rows, strict=True):
            seen[n].append(part)
    for stream, parts in zip(streams, seen, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), small[2].logits(stream.tokens), atol=2e-3)


def test_logits_come_for_the_rows_asked_for_only(exact: PagedModel) -> None:
    prompt = np.array(tokens(20))
    ends, past, table = np.array([0, 20], np.int32), np.zeros(1, np.int32), np.array([[3, 4]], np.int32)
    everything = exact.run(prompt, ends, past, table, np.arange(20)).copy()
    some = exact.run(prompt, ends, past, table, np.array([19, 0, 7]))
    assert some.shape == (3, len(tiny.TOKENS))
    np.testing.assert_allclose(some, everything[[19, 0, 7]], atol=1e-5)
    assert exact.run(prompt, ends, past, table, np.array([], np.int64)).shape == (0, len(tiny.TOKENS))


def test_a_copied_page_is_as_good_as_the_original(exact: PagedModel) -> None:
    prompt = tokens(24)
    poison(exact)
    prefill(exact, prompt[:20], [3, 4])
    exact.copy_page(4, 8)
    original = step(exact, [(Stream(prompt, [3, 4], past=20), 4)])[0]
    copied = step(exact, [(Stream(prompt, [3, 8], past=20), 4)])[0]
    np.testing.assert_array_equal(original, copied)


@pytest.mark.parametrize("page", [-1, PAGES])
def test_a_page_outside_the_pool_fails_the_step_and_not_the_process(exact: PagedModel, page: int) -> None:
    prefill(exact, tokens(16), [0])
    for table in ([page, 0], [0, page]):  # read, written
        with pytest.raises(StepError):
            step(exact, [(Stream(tokens(20), table, past=16), 4)])
    with pytest.raises(StepError):
        step(exact, [(Stream(tokens(20), [0]), 20)])  # more tokens than pages


@pytest.mark.parametrize(("backend", "weights"), VARIANTS)
def test_a_prompt_in_chunks_of_which_some_sample_nothing(
    small: tuple[Path, GgufFile, Reference], backend: Backend, weights: WeightFormat
) -> None:
    path, source, reference = small
    tokenizer = Tokenizer(tokenizer_json(source.tokenizer), tokenizer_meta(source.tokenizer, source.geometry.eos))
    model = load(path, source, backend, weights)
    kernel = Kernel(Limits(1, 16, 1, tiny.CONTEXT, PAGE_TOKENS, PAGES), POLICIES["fcfs"]())
    executor = OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns)
    prompt = tokens(40)
    kernel.submit(RequestSpec("r", "m", prompt, Sampling(temperature=0.0, max_tokens=3, ignore_eos=True)), 0)
    told = list[int]()
    while (plan := kernel.plan(0)) is not None:
        for event in kernel.commit(plan, executor.execute(plan), 0):
            told += event.tokens if isinstance(event, Output) else ()
    assert len(told) == 3
    assert told == reference.greedy(prompt, 3) or weights == "file"


def test_native_and_gather_agree(small: tuple[Path, GgufFile, Reference]) -> None:
    prompt = tokens(60)
    native, gather = (load(small[0], small[1], backend, "float32") for backend in ("native", "gather"))
    pages = [8, 1, 5, 3]
    np.testing.assert_allclose(prefill(native, prompt, pages, [7]), prefill(gather, prompt, pages, [40]), atol=1e-3)


def test_int8_pages_cost_little_and_can_be_copied(small: tuple[Path, GgufFile, Reference]) -> None:
    model = load(small[0], small[1], "native", "float32", kv_format="int8")
    assert model.bytes_per_page == sum(pool[0].nbytes for pool in (*model.keys, *model.values))
    poison(model)
    prompt = tokens(60)
    logits = prefill(model, prompt, [8, 1, 5, 3], [7])
    expected = small[2].logits(prompt)
    assert np.sqrt(np.mean((logits - expected) ** 2)) / expected.std() < 0.02
    model.copy_page(3, 9)
    original, copied = (step(model, [(Stream(prompt, [8, 1, 5, last], past=59), 1)])[0] for last in (3, 9))
    np.testing.assert_array_equal(original, copied)


def test_int8_pages_need_the_native_backend(small: tuple[Path, GgufFile, Reference]) -> None:
    with pytest.raises(ModelError, match="int8 K and V need the native backend"):
        load(small[0], small[1], "gather", "float32", kv_format="int8")


def test_strict_needs_the_native_backend() -> None:
    with pytest.raises(ModelError, match="native"):
        choose_backend("gather", strict=True)
    assert choose_backend("gather", strict=False)[0] == "gather"
