"""Latency windows against exact percentiles, and the queue meter against Little's law and exact small cases."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.prediction.estimators import SECOND, LatencyWindow, QueueMeter, percentile

values = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300)
shares = st.floats(0.01, 1.0)


@settings(deadline=None)
@given(values, shares)
def test_a_percentile_is_reached_by_its_share_of_the_values_and_no_smaller_one_is(
    sample: list[float], q: float
) -> None:
    found = percentile(sorted(sample), q)
    assert found in sample
    assert sum(v <= found for v in sample) >= q * len(sample) - 1e-9
    assert sum(v < found for v in sample) < q * len(sample) + 1e-9


@settings(deadline=None)
@given(values, shares)
def test_a_window_is_within_one_percent_of_the_exact_percentile(sample: list[float], q: float) -> None:
    window = LatencyWindow(60)
    for value in sample:
        window.add(value, 0)
    summary = window.summary(0, q)
    assert summary.count == len(sample)
    assert summary.mean == pytest.approx(sum(sample) / len(sample))
    assert summary.percentiles[0] == pytest.approx(percentile(sorted(sample), q), rel=0.0101)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1000)), max_size=200), st.integers(1, 20))
def test_a_window_holds_exactly_its_last_seconds(steps: list[tuple[int, float]], seconds: int) -> None:
    window, now, added = LatencyWindow(seconds), 0, []
    for pause, value in steps:
        now += pause * SECOND // 10
        window.add(value, now)
        added.append((now // SECOND, value))
    inside = [value for second, value in added if second > now // SECOND - seconds]
    assert window.summary(now).count == len(inside)
    assert window.total(now) == pytest.approx(sum(inside))
    assert window.summary(now + (seconds + 1) * SECOND, 0.5).percentiles == (None,)


def test_exact_measures_of_two_requests() -> None:
    """Window of 10 s: A is there from 1 s to 5 s (2 s queued), B from 4 s and stays."""
    meter = QueueMeter(0, seconds=10)
    meter.arrive("a", 1 * SECOND)
    meter.arrive("b", 4 * SECOND)
    meter.leave("a", 5 * SECOND, 2 * SECOND)
    measured = meter.measure(10 * SECOND)
    assert (measured.arrivals, measured.completions) == (2, 1)
    assert measured.arrival_rate == pytest.approx(0.2)
    assert measured.in_system == pytest.approx((4 + 6) / 10)
    assert (measured.time_in_system, measured.time_queued) == (4.0, 2.0)
    assert measured.service_rate == pytest.approx(1 / 9)  # busy from 1 s to 10 s


def test_the_window_forgets() -> None:
    meter = QueueMeter(0, seconds=10)
    meter.arrive("a", 1 * SECOND)
    meter.leave("a", 5 * SECOND, 0)
    assert meter.measure(14 * SECOND).in_system == pytest.approx(1 / 10)  # the part after 4 s
    measured = meter.measure(20 * SECOND)
    assert (measured.arrivals, measured.completions, measured.in_system) == (0, 0, 0)
    assert measured.time_in_system is measured.service_rate is measured.little is None


def test_before_any_time_has_passed_nothing_is_measured() -> None:
    measured = QueueMeter(7 * SECOND).measure(7 * SECOND)
    assert measured.arrival_rate is measured.in_system is None


def test_a_request_that_never_arrived_does_not_count() -> None:
    meter = QueueMeter(0)
    meter.leave("stranger", SECOND, 0)
    assert meter.measure(2 * SECOND).completions == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1, max_size=60))
def test_littles_law_is_exact_when_the_window_begins_and_ends_empty(stays: list[tuple[int, int]]) -> None:
    """L·T and Σ W are then the same area under N(t), whatever the order of arrivals and departures."""
    meter = QueueMeter(0, seconds=1000)
    for number, (arrived, stay) in enumerate(stays):
        meter.arrive(str(number), arrived * SECOND)
        meter.leave(str(number), (arrived + stay) * SECOND, 0)
    measured = meter.measure(300 * SECOND)
    assert measured.little == pytest.approx(1.0)
    covered = {second for arrived, stay in stays for second in range(arrived, arrived + stay)}
    assert measured.service_rate == pytest.approx(len(stays) / len(covered))


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_a_simulated_single_server_measures_as_queueing_theory_says(rho: float) -> None:
    """M/M/1 with μ = 10/s by a manual clock: λ/μ is the busy share, and L, W, Wq come near the closed forms."""
    random_numbers, mu, seconds = random.Random(int(rho * 10)), 10.0, 4_000
    meter = QueueMeter(0, seconds)
    arrived, free, leaving = 0.0, 0.0, deque[tuple[float, str, float]]()
    number = 0
    while arrived < seconds:
        arrived += random_numbers.expovariate(rho * mu)
        begun = max(arrived, free)
        free = begun + random_numbers.expovariate(mu)
        while leaving and leaving[0][0] <= arrived:
            left, name, queued = leaving.popleft()
            meter.leave(name, int(left * SECOND), int(queued * SECOND))
        meter.arrive(str(number), int(arrived * SECOND))
        leaving.append((free, str(number), begun - arrived))
        number += 1
    measured = meter.measure(int(arrived * SECOND))
    assert measured.arrival_rate and measured.service_rate and measured.time_queued
    assert measured.little == pytest.approx(1, abs=0.01)
    assert measured.arrival_rate == pytest.approx(rho * mu, rel=0.03)
    assert measured.arrival_rate / measured.service_rate == pytest.approx(rho, rel=0.05)
    assert measured.in_system == pytest.approx(rho / (1 - rho), rel=0.15)
    assert measured.time_in_system == pytest.approx(1 / (mu - rho * mu), rel=0.15)
    assert measured.time_queued == pytest.approx(rho / (mu - rho * mu), rel=0.15)


def test_an_overloaded_server_measures_rho_above_one() -> None:
    meter = QueueMeter(0, seconds=100)
    for second in range(100):
        meter.arrive(str(2 * second), second * SECOND)
        meter.arrive(str(2 * second + 1), second * SECOND)
        meter.leave(str(second), (second + 1) * SECOND, 0)
    measured = meter.measure(100 * SECOND)
    assert measured.arrival_rate and measured.service_rate
    assert measured.arrival_rate / measured.service_rate == pytest.approx(2)
