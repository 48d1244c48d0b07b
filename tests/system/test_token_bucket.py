from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmosd.system.token_bucket import TokenBucket, TokenBuckets
from llmosd.types import Quota, Quotas

S = 10**9
rates, bursts = st.integers(1, 2000), st.integers(1, 5000)
asks = st.lists(st.tuples(st.integers(0, 3 * S), st.integers(1, 5000)), max_size=40)


@given(rates, bursts, asks)
def test_what_is_taken_in_any_time_is_bounded(rate: int, burst: int, asks: list[tuple[int, int]]) -> None:
    bucket, now, taken = TokenBucket(rate, burst, 0), 0, list[tuple[int, int]]()
    for gap, tokens in asks:
        now += gap
        if tokens <= burst and not bucket.take(tokens, now):
            taken.append((now, tokens))
    for place, (start, _) in enumerate(taken):
        for last in range(place, len(taken)):
            assert sum(tokens for _, tokens in taken[place : last + 1]) * S <= burst * S + rate * (
                taken[last][0] - start
            )


@given(rates, bursts, asks, st.integers(1, 9000))
def test_whoever_waits_as_long_as_told_gets_them_and_a_moment_before_does_not(
    rate: int, burst: int, asks: list[tuple[int, int]], wanted: int
) -> None:
    bucket, now = TokenBucket(rate, burst, 0), 0
    for gap, tokens in asks:
        now += gap
        bucket.take(tokens, now)
    if wait := bucket.take(wanted, now):
        assert bucket.take(wanted, now + wait - 1) == 1
        assert bucket.take(wanted, now + wait) == 0


@given(rates, bursts, asks, st.randoms())
def test_what_is_used_since_the_start_never_exceeds_burst_and_rate(
    rate: int, burst: int, asks: list[tuple[int, int]], random: object
) -> None:
    """Part of what was taken is given back, as when an answer ends early."""
    bucket, now, used = TokenBucket(rate, burst, 0), 0, 0
    for gap, tokens in asks:
        now += gap
        if tokens <= burst and not bucket.take(tokens, now):
            needed = random.randint(0, tokens)  # type: ignore[attr-defined]
            bucket.give_back(tokens - needed, now)
            used += needed
            assert used * S <= burst * S + rate * now
        assert 0 <= bucket.left(now) <= burst
        assert bucket.full_in(now) * rate >= (burst - bucket.left(now) - 1) * S


def test_more_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    bucket = TokenBucket(10, 100, 0)
    assert bucket.take(250, 0) == 0
    assert bucket.left(0) == 0 and bucket.full_in(0) == 25 * S
    assert bucket.take(1, 15 * S) == S // 10, "the debt is paid first"
    assert bucket.take(250, 20 * S) == 5 * S


def test_only_who_has_spent_is_remembered() -> None:
    buckets = TokenBuckets(Quotas(Quota(tokens_per_s=10), {"free": Quota()}))
    assert buckets.of("free", 0) is None
    first = buckets.of("first", 0)
    assert first is not None and first.burst == 600, "a minute's worth"
    first.take(600, 0)
    for number in range(500):
        bucket = buckets.of(f"u{number}", number * S // 10)
        assert bucket is not None
        bucket.take(10, number * S // 10)
    assert len(buckets) < 150
    assert buckets.of("first", 50 * S) is first and first.left(50 * S) == 500
