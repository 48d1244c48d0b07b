"""Closed forms of queueing theory and of parallel scaling: plain numbers in, frozen results out.

Where a model gives no number the result says why in words instead. Times are in the inverse unit of the rates given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median, quantiles

MIN_TIMINGS = 4  # fewer have no usable quartiles
NORMAL_975 = 1.959964
SIGMA_PER_IQR = 1 / 1.348980  # of a normal distribution
SIGMA_OF_MEDIAN = 1.253314  # asymptotic standard error of a median, in σ/√n


@dataclass(frozen=True, slots=True)
class Mm1:
    """Means of M/M/1 in steady state: utilisation, number in system, time in system, time waiting for service.

    `why` is empty when all four are valid. At ρ ≥ 1 only ρ is given: the queue grows without bound.
    """

    rho: float | None = None
    l: float | None = None  # noqa: E741  (the field's own symbol)
    w: float | None = None
    wq: float | None = None
    why: str = ""


def mm1(arrival_rate: float | None, service_rate: float | None) -> Mm1:
    """M/M/1 with arrival rate λ and service rate μ (Kleinrock, Queueing Systems I, 1975).

    ρ = λ/μ, L = ρ/(1−ρ), W = L/λ = 1/(μ−λ), Wq = ρ²/(λ(1−ρ)) = ρ/(μ−λ); the second forms also hold at λ = 0.
    Valid for one server, one request at a time, Poisson arrivals and exponential service. Never raises.
    """
    if arrival_rate is None or not isfinite(arrival_rate) or arrival_rate < 0:
        return Mm1(why="λ not measured yet")
    if service_rate is None or not isfinite(service_rate) or service_rate <= 0:
        return Mm1(why="μ not measured yet")
    rho = arrival_rate / service_rate
    if rho >= 1:
        return Mm1(rho=rho, why="unstable: ρ ≥ 1, arrivals exceed what is served")
    spare = service_rate - arrival_rate
    return Mm1(rho=rho, l=rho / (1 - rho), w=1 / spare, wq=rho / spare)


def amdahl(p: float, n: float) -> float:
    """Speed-up 1/((1−p)+p/n) on n processors when the share p of the work is parallel (Amdahl, 1967).

    Raises ValueError unless 0 ≤ p ≤ 1 and n ≥ 1.
    """
    if not 0 <= p <= 1 or n < 1:
        raise ValueError(f"Amdahl's law needs 0 <= p <= 1 and n >= 1, not p={p}, n={n}")
    return 1 / ((1 - p) + p / n)


@dataclass(frozen=True, slots=True)
class AmdahlFit:
    """The parallel share p with its 95 % interval, and the timings it came from.

    `medians` and `spreads` (interquartile ranges) stand in the order of `threads` and in the unit of the samples.
    `p` is None where it was not measured. `why` explains that, or a p that had to be clipped to 0 … 1.
    """

    threads: tuple[int, ...] = ()
    medians: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    p: float | None = None
    p_low: float | None = None
    p_high: float | None = None
    why: str = ""


def fit_amdahl(samples: Mapping[int, Sequence[float]]) -> AmdahlFit:
    """Fit p to step times measured at each thread count, 1 among them.

    Least squares through the origin on the reciprocal speed-up y(n) = t(n)/t(1) = 1 − p(1 − 1/n), on medians, because
    timings have outliers upwards only. The interval is the larger of two errors: sampling noise (standard errors of
    the medians, from the interquartile ranges, propagated to p) and misfit (residuals, with three thread counts up).
    """
    problem = _unusable(samples)
    if problem:
        return AmdahlFit(why=problem)
    threads = tuple(sorted(samples))
    medians = tuple(median(samples[n]) for n in threads)
    spreads = tuple(_interquartile_range(samples[n]) for n in threads)
    errors = [
        SIGMA_OF_MEDIAN * SIGMA_PER_IQR * spread / sqrt(len(samples[n]))
        for n, spread in zip(threads, spreads, strict=True)
    ]
    p, error = _least_squares(threads, medians, errors)
    return AmdahlFit(
        threads,
        medians,
        spreads,
        p=_clip(p),
        p_low=_clip(p - NORMAL_975 * error),
        p_high=_clip(p + NORMAL_975 * error),
        why="" if 0 <= p <= 1 else "more threads are slower: p = 0" if p < 0 else "faster than linear: p = 1",
    )


def _unusable(samples: Mapping[int, Sequence[float]]) -> str:
    if 1 not in samples or len(samples) < 2:
        return "not measured: needs timings at 1 thread and at more (one core?)"
    for n, times in samples.items():
        if len(times) < MIN_TIMINGS:
            return f"not measured: {len(times)} timings at {n} threads, {MIN_TIMINGS} needed"
        if n < 1 or not all(isfinite(t) and t > 0 for t in times):
            return f"not measured: unusable timings at {n} threads"
    return ""


def _least_squares(threads: Sequence[int], medians: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """p and its standard error. Thread count 1 is the reference: its x is 0, its error enters through t(1)."""
    one = medians[0]
    x = [1 - 1 / n for n in threads]
    gain = [1 - t / one for t in medians]
    sum_xx = sum(a * a for a in x)
    p = sum(a * g for a, g in zip(x, gain, strict=True)) / sum_xx
    slopes = [-a / (one * sum_xx) for a in x]  # dp/dt(n)
    slopes[0] = sum(a * t for a, t in zip(x, medians, strict=True)) / (one * one * sum_xx)
    sampling = sum((slope * error) ** 2 for slope, error in zip(slopes, errors, strict=True))
    freedom = len(threads) - 2  # points with x > 0, less the one parameter
    misfit = sum((g - p * a) ** 2 for a, g in zip(x, gain, strict=True)) / (freedom * sum_xx) if freedom > 0 else 0.0
    return p, sqrt(max(sampling, misfit))


def _interquartile_range(times: Sequence[float]) -> float:
    low, _, high = quantiles(times, n=4, method="inclusive")
    return high - low


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))
