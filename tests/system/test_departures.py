from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.system.departures import Departures

S = 10**9


def test_departures_forget_the_last_minute_and_idle_time() -> None:
    departures = Departures()
    for second in range(10):
        departures.add(second * S)
    assert departures.per_s(10 * S) == pytest.approx(1.0)
    assert departures.per_s(65 * S) == pytest.approx(5 / 60)
    departures.busy_since(100 * S)
    assert departures.per_s(102 * S) == pytest.approx(0.5)


@given(st.lists(st.integers(0, 10**12), max_size=30), st.integers(0, 10**12))
def test_a_rate_is_never_zero(times: list[int], busy_since: int) -> None:
    departures = Departures()
    departures.busy_since(busy_since)
    for now in sorted(times):
        departures.add(now)
        assert departures.per_s(now) > 0
