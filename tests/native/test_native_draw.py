"""Drawing within a graph: the same as drawing afterwards, row by row, whatever the threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_operators import Array, run
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from llmosd.runtime import native
from llmosd.runtime.native_sampling import NativeSampler
from llmosd.runtime.stream import NO_TOKEN, Stream
from llmosd.types import Sampling, SequenceStart

pytestmark = pytest.mark.usefixtures("kernels")

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]),
    top_k=st.sampled_from([0, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.sampled_from([None, 0, 5]),
)


def stream_of(sampling: Sampling, vocab: int = 1000) -> Stream:
    stream = Stream(SequenceStart(0, 0, (1, 2, 3), sampling), vocab)
    for token in (3, 4, 4):
        stream.accept(token)
    return stream


def addresses(streams: list[Stream | None]) -> Array:
    return np.array([stream.address if stream else 0 for stream in streams], np.int64)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([5, 64, 1000]),
    st.lists(st.none() | samplings, min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_a_graph_draws_what_the_sampler_does(
    seed: int, vocab: int, several: list[Sampling | None], threads: int
) -> None:
    """Rows are as long as the model's vocabulary, which may be padded beyond the tokens."""
    logits = np.random.default_rng(seed).standard_normal((len(several), vocab + 3)).astype(np.float32)
    streams = [sampling and stream_of(sampling, vocab) for sampling in several]
    before = logits.copy()
    tokens = run("Draw", [logits, addresses(streams)], threads=threads)
    np.testing.assert_array_equal(logits, before)
    assert all(tokens[row] == NO_TOKEN for row, stream in enumerate(streams) if stream is None)
    asked = {row: stream for row, stream in enumerate(streams) if stream}
    found = [(tokens[row], stream.logprobs(tokens[row])) for row, stream in asked.items()]
    status = native.status()
    assert status.path is not None
    sampler = NativeSampler(native.load(status.path), threads=1)
    expected = sampler.draw_rows(logits[list(asked)], list(asked.values()))
    assert found == [(token, stream.logprobs(token)) for token, stream in zip(expected, asked.values(), strict=True)]


def test_rows_of_one_memoryless_stream_are_for_its_next_tokens() -> None:
    logits = np.random.default_rng(1).standard_normal((4, 1000)).astype(np.float32)
    stream = stream_of(Sampling(temperature=1.0, seed=5))
    tokens = run("Draw", [logits, addresses([None, stream, stream, stream])], threads=2).tolist()
    for row in (1, 2, 3):
        assert run("Draw", [logits[row : row + 1], addresses([stream])]).tolist() == [tokens[row]]
        stream.accept(tokens[row])


def test_a_row_that_is_not_finite_has_no_token() -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[1, 7], logits[2, 9] = np.nan, 1.0
    streams = [stream_of(Sampling(temperature=0.0, logprobs=logprobs)) for logprobs in (None, 3, 3)]
    assert run("Draw", [logits, addresses([*streams])], threads=2).tolist() == [0, -1, 9]


def test_nothing_to_draw_from_is_no_error() -> None:
    assert run("Draw", [np.zeros((0, 40), np.float32), np.zeros(0, np.int64)]).tolist() == []


@pytest.mark.parametrize(
    ("logits", "streams", "message"),
    [
        (np.zeros((2, 40), np.float32), np.zeros(3, np.int64), "one entry for each row"),
        (np.zeros((2, 0), np.float32), np.zeros(2, np.int64), "empty"),
        (np.zeros(40, np.float32), np.zeros(1, np.int64), "2 dimensions"),
        (np.zeros((1, 40), np.float32), np.zeros((1, 1), np.int64), "1 dimension"),
    ],
)
def test_wrong_shapes_are_refused(logits: Array, streams: Array, message: str) -> None:
    with pytest.raises((InvalidArgument, RuntimeException), match=message):
        run("Draw", [logits, streams])
