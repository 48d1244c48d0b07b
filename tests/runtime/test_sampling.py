"""Sampling against plain float64 references that sort everything."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmosd.runtime import native
from llmosd.runtime.distribution import Distribution, Row, quantile, weigh
from llmosd.runtime.native_sampling import NativeSampler
from llmosd.runtime.sampling import NumpySampler, Sampler
from llmosd.runtime.stream import NO_TOKEN, Stream, uniform
from llmosd.types import Sampling, SequenceStart

EDGE = 1e-5  # float32 may decide otherwise this close to a limit

vocabularies = st.sampled_from([1, 7, 64, 300, 5003])
spreads = st.sampled_from([0.05, 1.0, 4.0])
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 10_000]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([-1.0, 0.0, 0.5]),
    presence_penalty=st.sampled_from([-0.5, 0.0, 1.0]),
    seed=st.integers(-(2**63), 2**64),
    logprobs=st.sampled_from([None, 0, 5]),
)


def logits(rng: np.random.Generator, vocab: int, spread: float) -> npt.NDArray[np.float32]:
    return (rng.standard_normal(vocab) * spread).astype(np.float32)


def native_sampler() -> NativeSampler:
    found = native.status()
    if not found.available or found.path is None:
        pytest.skip(found.why)
    return NativeSampler(native.load(found.path), threads=2)


@pytest.fixture(scope="module", params=["native", "numpy"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return NumpySampler() if request.param == "numpy" else native_sampler()


@dataclass(frozen=True)
class Draw:
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def told(token: int, stream: Stream) -> Draw:
    """A draw with what it left in its stream."""
    entries = stream.logprobs(token)
    return Draw(token, entries[0].logprob, entries[0].top) if entries else Draw(token)


def drawn(sampler: Sampler, row: Row, stream: Stream) -> Draw:
    (token,) = sampler.draw_rows(row[None], [stream])
    assert token != NO_TOKEN
    return told(token, stream)


def test_a_step_in_which_nothing_is_sampled_draws_nothing(sampler: Sampler) -> None:
    assert sampler.draw_rows(np.empty((0, 300), np.float32)[:, :299], []) == []


def stream(sampling: Sampling, prompt: list[int], output: list[int], choice: int = 0) -> Stream:
    made = Stream(SequenceStart(sequence=1, choice=choice, prompt=prompt, sampling=sampling))
    for token in output:
        made.accept(token)
    return made


def penalised(row: npt.NDArray[np.float32], sampling: Sampling, prompt: list[int], output: list[int]) -> list[float]:
    values = [float(x) for x in row]
    for token in set(prompt + output):
        factor = sampling.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in Counter(output).items():
        values[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return values


def softmax(values: list[float], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    scaled = np.array(values, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def survivors(p: npt.NDArray[np.float64], sampling: Sampling) -> tuple[set[int], float]:
    """What the cuts leave, and how close the nearest decision was."""
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    margin = 1.0
    if 0 < sampling.top_k < len(order):
        margin = float(p[order[sampling.top_k - 1]] / p[order[sampling.top_k]]) - 1
        order = order[: sampling.top_k]
    if sampling.min_p:
        limit = p[order[0]] * sampling.min_p
        margin = min(margin, *(abs(p[token] / limit - 1) for token in order[1:]), 1.0)
        order = [order[0]] + [token for token in order[1:] if p[token] >= limit]
    if sampling.top_p < 1.0:
        cumulative = np.cumsum(p[order])
        cumulative /= cumulative[-1]
        margin = min(margin, float(np.abs(cumulative - sampling.top_p).min()))
        end = int(np.searchsorted(cumulative, sampling.top_p))
        if end + 1 < len(order):
            margin = min(margin, float(p[order[end]] / p[order[end + 1]]) - 1)
        order = order[: end + 1]
    return set(order), margin


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), vocabularies, spreads, samplings, st.integers(0, 3))
def test_draw_is_the_inverse_cdf_of_the_reference(
    sampler: Sampler, seed: int, vocab: int, spread: float, sampling: Sampling, choice: int
) -> None:
    rng = np.random.default_rng(seed)
    row = logits(rng, vocab, spread)
    prompt, output = rng.integers(0, vocab, 20).tolist(), rng.integers(0, vocab, 70).tolist()
    p = softmax(penalised(row, sampling, prompt, output), sampling.temperature)
    kept, margin = survivors(p, sampling)
    assume(margin > EDGE)
    token = drawn(sampler, row, stream(sampling, prompt, output, choice)).token
    assert token in kept
    cuts = sampling.top_k or sampling.min_p or sampling.top_p < 1.0
    order = sorted(kept, key=lambda one: (-p[one], one)) if cuts else list(range(vocab))
    after = np.cumsum(p[order] / p[order].sum())
    u, place = uniform(sampling.seed, choice, len(prompt) + len(output)), order.index(token)
    assert (after[place - 1] if place else 0.0) - EDGE <= u <= after[place] + EDGE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), vocabularies, spreads, samplings.map(lambda s: replace(s, temperature=0.0)))
def test_greedy_is_the_penalised_maximum(
    sampler: Sampler, seed: int, vocab: int, spread: float, sampling: Sampling
) -> None:
    rng = np.random.default_rng(seed)
    row = logits(rng, vocab, spread)
    prompt, output = rng.integers(0, vocab, 20).tolist(), rng.integers(0, vocab, 70).tolist()
    values = penalised(row, sampling, prompt, output)
    token = drawn(sampler, row, stream(sampling, prompt, output)).token
    assert values[token] >= max(values) - 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), vocabularies, spreads, samplings, st.integers(0, 20))
def test_logprobs_are_of_the_raw_row(
    sampler: Sampler, seed: int, vocab: int, spread: float, sampling: Sampling, count: int
) -> None:
    rng = np.random.default_rng(seed)
    row = logits(rng, vocab, spread)
    draw = drawn(sampler, row, stream(replace(sampling, logprobs=count), [0], [0]))
    expected = np.log(softmax(row.tolist()))
    assert draw.logprob == pytest.approx(expected[draw.token], abs=1e-4)
    order = sorted(range(vocab), key=lambda token: (-row[token], token))[:count]
    assert [token for token, _ in draw.top] == order
    assert [value for _, value in draw.top] == pytest.approx(expected[order], abs=1e-4)


def test_ties_at_an_edge_go_to_the_lower_ids(sampler: Sampler) -> None:
    row = np.zeros(5003, np.float32)
    row[[9, 70, 4000]] = 10.0
    tokens = {drawn(sampler, row, stream(Sampling(top_k=2, seed=s), [0], [])).token for s in range(50)}
    assert tokens == {9, 70}
    top = drawn(sampler, row, stream(Sampling(temperature=0.0, logprobs=4), [0], [])).top
    assert [token for token, _ in top] == [9, 70, 4000, 0]


@given(st.integers(0, 2**32), vocabularies, spreads, st.sampled_from([0.1, 1.0, 3.0]))
def test_blocks_are_those_of_the_reference(seed: int, vocab: int, spread: float, scale: float) -> None:
    row = logits(np.random.default_rng(seed), vocab, spread)
    maxima, sums = weigh(row, scale)
    exact = np.exp((row.astype(np.float64) - row.max()) * scale)
    starts = np.arange(0, vocab, 64)
    np.testing.assert_array_equal(maxima, np.maximum.reduceat(row, starts))
    np.testing.assert_allclose(sums, np.add.reduceat(exact, starts), rtol=1e-5)


@given(st.integers(0, 2**32), vocabularies, st.integers(1, 60), st.integers(0, 6000))
def test_top_is_a_full_sort_cut_off(seed: int, vocab: int, values: int, count: int) -> None:
    """Few distinct values, zeros of both signs among them, so that there are ties."""
    row = (np.random.default_rng(seed).integers(0, values, vocab) - values // 2).astype(np.float32)
    row[::3] *= np.where(row[::3] == 0, np.float32(-1), np.float32(1))
    expected = sorted(range(vocab), key=lambda token: (-row[token], token))[:count]
    assert Distribution(row, 1.0).top(count).tolist() == expected


@given(st.integers(0, 2**32), vocabularies, st.floats(0, 1, exclude_max=True))
def test_quantile_finds_what_a_plain_cumulative_sum_does(seed: int, vocab: int, u: float) -> None:
    row = logits(np.random.default_rng(seed), vocab, 2.0)
    ends = np.cumsum(softmax(row.tolist()))
    token = Distribution(row, 1.0).quantile(u)
    assert (ends[token - 1] if token else 0.0) - EDGE <= u <= ends[token] + EDGE


@pytest.mark.parametrize("top_p", [0.9, 1 - 1e-6, 1 - 1e-9, 1 - 2**-53])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_nucleus_of_nearly_everything_is_found(top_p: float, spread: float) -> None:
    row = logits(np.random.default_rng(2), 5003, spread)
    distribution = Distribution(row, 1.0)
    ids, weights = distribution.cut(Sampling(top_p=top_p))
    assert weights.sum() >= (top_p - 1e-6) * distribution.total
    assert weights[:-1].sum() <= (top_p + 1e-6) * distribution.total
    assert len(set(ids.tolist())) == len(ids)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80).filter(any), st.floats(0, 1, exclude_max=True))
def test_a_weight_of_zero_is_never_chosen(weights: list[int], u: float) -> None:
    """Small integers, so that every sum is exact."""
    chosen = quantile(np.array(weights, np.float64), u * sum(weights))
    assert chosen == np.searchsorted(np.cumsum(weights), u * sum(weights), side="right")
    assert weights[quantile(np.array(weights, np.float64), sum(weights))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=6, temperature=1.5),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2),
    ],
)
def test_frequencies_follow_the_distribution(sampler: Sampler, sampling: Sampling) -> None:
    """Chi-square over 4,000 draws with fixed seeds, bound at p = 0.001 (Wilson-Hilferty approximation)."""
    row = logits(np.random.default_rng(5), 300, 1.5)
    kept, _ = survivors(softmax(row.tolist(), sampling.temperature), sampling)
    p = softmax(row.tolist(), sampling.temperature)[sorted(kept)]
    draws = 4000
    counts = Counter(drawn(sampler, row, stream(replace(sampling, seed=s), [0], [])).token for s in range(draws))
    assert set(counts) <= kept
    expected = dict(zip(sorted(kept), p / p.sum() * draws, strict=True))
    cells = [token for token in expected if expected[token] >= 5]
    rest = draws - sum(expected[token] for token in cells)
    observed = [(counts[token], expected[token]) for token in cells]
    if rest > 1:
        observed.append((draws - sum(counts[token] for token in cells), rest))
    statistic = sum((o - e) ** 2 / e for o, e in observed)
    freedom = len(observed) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_draw_does_not_depend_on_what_was_drawn_before_it(sampler: Sampler) -> None:
    rng = np.random.default_rng(1)
    several = [logits(rng, 5003, 2.0) for _ in range(8)]
    settings_of = [
        Sampling(
            temperature=0.5 + i / 4, top_p=0.9 if i % 2 else 1.0, presence_penalty=i % 3, seed=i, logprobs=i or None
        )
        for i in range(8)
    ]

    def draws(order: list[int]) -> dict[int, Draw]:
        streams = [stream(settings_of[i], [1, 2], [3, 3]) for i in order]
        tokens = sampler.draw_rows(np.stack([several[i] for i in order]), streams)
        return dict(zip(order, map(told, tokens, streams), strict=True))

    alone = {i: draws([i])[i] for i in range(8)}
    assert draws(list(range(8))) == alone
    assert draws([5, 2, 7, 0, 1, 3, 6, 4]) == alone


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), vocabularies, spreads, st.lists(samplings, min_size=1, max_size=6))
def test_the_native_library_draws_what_numpy_does(
    seed: int, vocab: int, spread: float, several: list[Sampling]
) -> None:
    """Several rows at once, of a wider array as with a padded vocabulary; the rows are as before afterwards."""
    rng = np.random.default_rng(seed)
    rows = logits(rng, len(several) * (vocab + 9), spread).reshape(len(several), -1)[:, :vocab]
    prompt, output = rng.integers(0, vocab, 20).tolist(), rng.integers(0, vocab, 70).tolist()
    assume(all(is_clear(row, sampling, prompt, output) for row, sampling in zip(rows, several, strict=True)))
    before, draws = rows.copy(), list[list[Draw]]()
    for sampler in (native_sampler(), NumpySampler()):
        streams = [stream(sampling, prompt, output) for sampling in several]
        draws.append(list(map(told, sampler.draw_rows(rows, streams), streams)))
    np.testing.assert_array_equal(rows, before)
    for fast, plain in zip(*draws, strict=True):
        assert fast.token == plain.token
        assert [token for token, _ in fast.top] == [token for token, _ in plain.top]
        values, expected = [(draw.logprob, *(value for _, value in draw.top)) for draw in (fast, plain)]
        assert values == pytest.approx(expected, abs=1e-4)


def is_clear(row: Row, sampling: Sampling, prompt: list[int], output: list[int]) -> bool:
    """Whether no decision of this draw is so close that rounding may turn it."""
    p = softmax(penalised(row, sampling, prompt, output), sampling.temperature)
    kept, margin = survivors(p, sampling)
    cuts = sampling.top_k or sampling.min_p or sampling.top_p < 1.0
    order = sorted(kept, key=lambda one: (-p[one], one)) if cuts else list(range(len(row)))
    after = np.cumsum(p[order] / p[order].sum())
    u = uniform(sampling.seed, 0, len(prompt) + len(output))
    return margin > EDGE and float(np.abs(after - u).min()) > EDGE


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_memoryless_stream_draws_several_tokens_ahead(sampler: Sampler, temperature: float) -> None:
    rows = logits(np.random.default_rng(8), 5 * 300, 1.0).reshape(5, 300)
    one, other = (stream(Sampling(temperature=temperature, top_p=0.9, seed=seed), [0], [1]) for seed in (1, 2))
    assert one.memoryless
    ahead = sampler.draw_rows(rows, [other, one, one, one, other])
    alone = list[int]()
    for row in rows[1:4]:
        alone += sampler.draw_rows(row[None], [one])
        one.accept(alone[-1])
    assert ahead[1:4] == alone
    assert ahead[0] == sampler.draw_rows(rows[:1], [other])[0] and ahead[4] == sampler.draw_rows(rows[4:], [other])[0]


def test_a_row_that_is_not_finite_leaves_the_others_alone(sampler: Sampler) -> None:
    rows = np.random.default_rng(3).standard_normal((4, 300)).astype(np.float32)
    streams = [stream(Sampling(seed=i, presence_penalty=i % 2, logprobs=2), [0], [1]) for i in range(4)]
    whole = sampler.draw_rows(rows, streams)
    rows[2, 200] = math.nan
    broken = sampler.draw_rows(rows, streams)
    assert broken[2] == NO_TOKEN
    assert [broken[i] for i in (0, 1, 3)] == [whole[i] for i in (0, 1, 3)]


def test_seen_tokens_that_the_row_has_no_logit_of_are_passed_over(sampler: Sampler) -> None:
    row = np.array([1.0, 0.5, 0.0], np.float32)
    greedy = Sampling(temperature=0.0, repetition_penalty=9.0)
    assert drawn(sampler, row, stream(greedy, [0, 3, 1 << 40], [])).token == 1


def test_uniform_depends_on_each_counter_and_spreads_evenly() -> None:
    values = [uniform(s, c, p) for s in (-1, 0, 7, 2**63) for c in range(8) for p in range(500)]
    assert len(set(values)) == len(values)
    assert all(0.0 <= value < 1.0 for value in values)
    histogram = np.histogram(values, bins=16, range=(0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001


def test_random_numbers_stay_what_they_are() -> None:
    """A seed given to a client keeps its meaning from version to version."""
    assert uniform(0, 0, 0) == 0.13870941014555427
    assert uniform(42, 1, 100) == 0.6745872367327186


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.0, logprobs=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [17, 299])
def test_logits_that_are_not_finite_are_an_error(sampler: Sampler, sampling: Sampling, bad: float, place: int) -> None:
    row = np.zeros(300, np.float32)
    row[place] = bad
    assert sampler.draw_rows(row[None], [stream(sampling, [0], [])]) == [NO_TOKEN]


def test_a_logit_of_minus_infinity_is_a_token_that_never_comes(sampler: Sampler) -> None:
    row = np.full(300, -math.inf, np.float32)
    row[[3, 290]] = 1.0
    for seed in range(50):
        for sampling in (Sampling(seed=seed), Sampling(seed=seed, top_p=0.99), Sampling(seed=seed, logprobs=1)):
            assert drawn(sampler, row, stream(sampling, [0], [])).token in (3, 290)
