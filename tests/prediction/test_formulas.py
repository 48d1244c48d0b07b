"""Formulas against published figures and against the laws they must obey."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.prediction.formulas import Mm1, amdahl, fit_amdahl, mm1

rates = st.floats(1e-3, 1e3)
loads = st.floats(0.001, 0.999)
shares = st.floats(0, 1)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------- M/M/1


def test_mm1_reproduces_bronson_1982_customers_per_hour() -> None:
    result = mm1(24, 30)
    assert (result.rho, result.l, result.w) == (close(0.8), close(4), close(1 / 6))


def test_mm1_reproduces_bronson_1982_queue_of_minutes() -> None:
    result = mm1(30, 40)  # 30/h, 1.5 min each
    assert result.wq is not None
    assert (30 * result.wq, 60 * result.wq) == (close(2.25), close(4.5))


def test_mm1_reproduces_bronson_1982_wait_and_response() -> None:
    result = mm1(1, 60 / 45)
    assert (result.wq, result.w) == (close(2.25), close(3))


def test_mm1_serves_one_mean_service_time_when_nothing_arrives() -> None:
    assert mm1(0, 4) == Mm1(rho=0.0, l=0.0, w=0.25, wq=0.0)


@given(service=rates, rho=loads)
def test_mm1_obeys_little_and_splits_response_into_wait_and_service(service: float, rho: float) -> None:
    arrival = rho * service
    result = mm1(arrival, service)
    assert result.why == ""
    assert result.l == pytest.approx(arrival * result.w, rel=1e-6)
    assert result.w == pytest.approx(result.wq + 1 / service, rel=1e-6)
    assert result.wq == pytest.approx(rho**2 / (arrival * (1 - rho)), rel=1e-6)


@given(service=rates, rho=loads)
def test_mm1_is_the_birth_death_chain_it_stands_for(service: float, rho: float) -> None:
    """L as the mean of π(n) = (1−ρ)ρⁿ, summed until what is left cannot matter."""
    total, n, weight = 0.0, 0, 1 - rho
    while n * weight > 1e-12 or n < 10:
        total += n * weight
        weight *= rho
        n += 1
    assert mm1(rho * service, service).l == pytest.approx(total, rel=1e-6, abs=1e-9)


@given(service=rates, low=loads, high=loads)
def test_mm1_waits_grow_with_load(service: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    calm, busy = mm1(low * service, service), mm1(high * service, service)
    assert calm.wq is not None and busy.wq is not None
    assert calm.wq <= busy.wq


@given(service=rates, excess=st.floats(1, 100))
def test_mm1_gives_words_instead_of_numbers_when_unstable(service: float, excess: float) -> None:
    result = mm1(service * excess, service)
    assert result.rho is not None and result.rho >= 1
    assert (result.l, result.w, result.wq) == (None, None, None)
    assert "unstable" in result.why


@pytest.mark.parametrize("arrival", [None, float("nan"), -1.0, float("inf")])
def test_mm1_says_that_arrivals_are_missing(arrival: float | None) -> None:
    assert mm1(arrival, 1) == Mm1(why="λ not measured yet")


@pytest.mark.parametrize("service", [None, float("nan"), 0.0, float("inf")])
def test_mm1_says_that_service_is_missing(service: float | None) -> None:
    assert mm1(1, service) == Mm1(why="μ not measured yet")


# ---------------------------------------------------------------- Amdahl


def test_amdahl_reproduces_the_textbook_figure() -> None:
    assert amdahl(0.95, 8) == pytest.approx(5.925926, abs=5e-7)


@given(p=shares, n=st.integers(1, 4096))
def test_amdahl_lies_between_one_and_both_of_its_limits(p: float, n: int) -> None:
    speedup = amdahl(p, n)
    assert 1 - 1e-12 <= speedup <= n * (1 + 1e-12)
    assert speedup * (1 - p) <= 1 + 1e-12


@pytest.mark.parametrize(("p", "n"), [(-0.1, 2), (1.1, 2), (0.5, 0)])
def test_amdahl_refuses_what_is_no_share_or_no_machine(p: float, n: float) -> None:
    with pytest.raises(ValueError, match="Amdahl"):
        amdahl(p, n)


@given(p=shares, base=st.floats(0.1, 1e4), most=st.integers(2, 64))
def test_fit_recovers_p_from_noiseless_timings(p: float, base: float, most: int) -> None:
    fit = fit_amdahl({n: [base / amdahl(p, n)] * 5 for n in range(1, most + 1)})
    assert fit.p == pytest.approx(p, abs=1e-9)
    assert fit.p_low == pytest.approx(p, abs=1e-6)
    assert fit.p_high == pytest.approx(p, abs=1e-6)
    assert fit.spreads == (0.0,) * most


def test_fit_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    trials, covered = 400, 0
    for _ in range(trials):
        samples = {n: [rng.gauss(20, 1) / amdahl(0.8, n) for _ in range(40)] for n in (1, 2, 4)}
        fit = fit_amdahl(samples)
        assert fit.p_low is not None and fit.p_high is not None
        covered += fit.p_low <= 0.8 <= fit.p_high
    assert 0.90 <= covered / trials <= 1.0


def test_fit_ignores_a_stalled_step() -> None:
    clean = {1: [20.0, 20.1, 19.9, 20.0, 20.0], 2: [12.0, 12.1, 11.9, 12.0, 12.0]}
    stalled = {1: clean[1], 2: [*clean[2][:4], 900.0]}
    assert fit_amdahl(stalled).p == pytest.approx(fit_amdahl(clean).p, abs=0.02)


def test_fit_widens_its_interval_when_the_law_does_not_hold() -> None:
    lawful = fit_amdahl({1: [12.0] * 5, 2: [9.0] * 5, 4: [7.5] * 5})
    bent = fit_amdahl({1: [12.0] * 5, 2: [6.5] * 5, 4: [11.0] * 5})
    assert bent.p_high - bent.p_low > 0.5 > lawful.p_high - lawful.p_low


def test_fit_clips_and_says_so_when_threads_only_hurt() -> None:
    fit = fit_amdahl({1: [10.0] * 5, 2: [15.0] * 5})
    assert (fit.p, fit.why) == (0.0, "more threads are slower: p = 0")


@pytest.mark.parametrize(
    "samples",
    [{}, {1: [1.0] * 9}, {2: [1.0] * 9, 4: [1.0] * 9}, {1: [1.0] * 9, 2: [1.0] * 3}, {1: [1.0] * 4, 2: [0.0] * 4}],
)
def test_fit_says_not_measured_instead_of_guessing(samples: dict[int, list[float]]) -> None:
    fit = fit_amdahl(samples)
    assert fit.p is None and fit.why.startswith("not measured")
