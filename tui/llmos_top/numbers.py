"""Numbers as people read them in a table; None is a dash, never a zero."""

from __future__ import annotations

import time

NONE = "–"


def seconds(value: float | None) -> str:
    """At most 6 cells below 1,000 days: 2.7ms, 240ms, 2.9s, 42s, 4m10s, 3h12m, 2d03h."""
    if value is None:
        return NONE
    if 0 < value < 0.00995:
        return f"{value * 1000:.1f}ms"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    if value < 9.95:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 100:
        return f"{whole}s"
    if whole < 6000:
        return f"{whole // 60}m{whole % 60:02}s"
    hours = whole // 3600
    return f"{hours}h{whole % 3600 // 60:02}m" if hours < 48 else f"{hours // 24}d{hours % 24:02}h"


def age(value: float) -> str:
    """As `seconds`, without a fraction: for what changes once a second."""
    return f"{int(value)}s" if value < 100 else seconds(float(int(value)))


def milliseconds(value: float | None) -> str:
    return seconds(None if value is None else value / 1000)


def count(value: float | None) -> str:
    """At most 5 cells up to a billion: 9999, 12.3k, 456k, 1.2M."""
    if value is None:
        return NONE
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            scaled = value / (1e3 if name == "k" else unit)
            return f"{scaled:.1f}{name}" if scaled < 99.95 else f"{scaled:.0f}{name}"
    return f"{value:.0f}"


def rate(value: float | None) -> str:
    """Per second, three significant digits: 0.12, 1.30, 29.8, 410."""
    if value is None:
        return NONE
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else count(value)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f}%"


def signed_percent(share: float | None) -> str:
    """+217%, −60%, ×8816 where a tenfold is exceeded; a minus sign as wide as the plus."""
    if share is None:
        return NONE
    return f"×{1 + share:.0f}" if share >= 9 else f"{100 * share:+.0f}%".replace("-", "−")


def gigabytes(value: float | None) -> str:
    """Binary units: 640M, 2.1G, 139G."""
    if value is None:
        return NONE
    for unit, name in ((2**40, "T"), (2**30, "G"), (2**20, "M")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.1f}{name}" if scaled < 9.95 else f"{scaled:.0f}{name}"
    return f"{value / 2**10:.0f}K"


def clock(at: float) -> str:
    """Local time of day of a Unix time."""
    return time.strftime("%H:%M:%S", time.localtime(at))
