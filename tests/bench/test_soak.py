"""A soak's verdicts: what it calls a trend is one, and what it cannot tell it says so."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from soak import Sample, Tally, metrics, result, show, step_times, verdicts
from trends import Trend, trend

BINS = 162  # of ten seconds, in half an hour without its first tenth


def noise(rng: np.random.Generator, neighbours: float, size: float = 0.05) -> np.ndarray:
    """Each value takes that share of the one before it."""
    values = rng.normal(0, size, BINS)
    for i in range(1, BINS):
        values[i] = neighbours * values[i - 1] + np.sqrt(1 - neighbours**2) * values[i]
    return values


@pytest.mark.parametrize(("neighbours", "least"), [(0.0, 0.93), (0.5, 0.92), (0.8, 0.88)])
def test_the_interval_holds_what_is_there_though_neighbours_are_alike(neighbours: float, least: float) -> None:
    rng = np.random.default_rng(0)
    rise = 0.1 * np.linspace(-0.5, 0.5, BINS)
    found = [trend(1 + noise(rng, neighbours) + rise) for _ in range(400)]
    assert least <= np.mean([one.low <= 0.1 <= one.high for one in found]) <= 0.98


def test_load_that_changes_is_no_trend() -> None:
    """Later steps feed more tokens, which explains why they take longer."""
    rng = np.random.default_rng(1)
    fed = np.linspace(10, 30, BINS) + rng.normal(0, 5, BINS)
    pages = rng.normal(100, 20, BINS)
    found = trend(20 + 0.5 * fed + 0.05 * pages + rng.normal(0, 0.5, BINS), np.stack([fed, pages], axis=1))
    assert found.low < 0 < found.high < 0.05
    assert trend(20 + 0.5 * fed).low > 0.2


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        trend(np.ones(15))


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (Trend(20, 0.01, -0.02, 0.04), "yes"),
        (Trend(20, 0.02, 0.01, 0.03), "yes"),  # significant, and too little to matter
        (Trend(20, 0.05, 0.01, 0.09), "no"),
        (Trend(20, -0.05, -0.09, -0.01), "yes"),  # faster
        (Trend(20, 0.0, -0.2, 0.2), "unresolved"),
        (Trend(20, 0.5, 0.2, 0.8), "no"),  # however wide
    ],
)
def test_verdict_on_step_time(speed: Trend, said: str) -> None:
    assert verdicts(Tally(), speed, Trend(3e8, 0, 0, 0), 30)["step time has no trend"] == said


def test_verdict_on_memory_and_errors() -> None:
    steady, grown = Trend(20, 0, -0.01, 0.01), Trend(3e8, 0.05, 0, 0.1)
    assert verdicts(Tally(), steady, grown, 30)["memory is flat"] == "no"
    assert verdicts(Tally(), steady, grown, 5)["memory is flat"] == "unresolved"
    assert verdicts(Tally(), steady, steady, 30) == {
        "no error": "yes",
        "step time has no trend": "yes",
        "memory is flat": "yes",
    }
    assert verdicts(Tally(sent=1), steady, steady, 30)["no error"] == "no"
    assert verdicts(Tally(errors=["a row was lost"]), steady, steady, 30)["no error"] == "no"


def test_steps_are_counted_from_totals() -> None:
    text = 'llmos_pages_used{model="a"} 3.0\nllmos_pages_used{model="b"} 4.0\nllmos_step_seconds_count{model="a"} 7.0\n'
    assert metrics(text) == {"llmos_pages_used": 7.0, "llmos_step_seconds_count": 7.0}
    samples = [Sample(50 * at, 2 * at, 500 * at, 400 * at, 30, 1) for at in range(401)]
    times, causes = step_times(samples)
    np.testing.assert_allclose(times, 40)
    np.testing.assert_allclose(causes, np.tile([10, 8, 30], (36, 1)))


def test_what_was_found_can_be_shown_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample(50 * at, 2 * at + at % 7 / 50, 500 * at, 400 * at, 30, 300_000_000) for at in range(1801)]
    found = result(Tally(3, Counter(length=2, stop=1)), samples, 30)
    assert json.loads(json.dumps(found)) == found
    assert found["ended"] == {"length": 2, "stop": 1}
    show(found)
    assert "no error: yes, step time has no trend: yes, memory is flat: yes" in capsys.readouterr().out
