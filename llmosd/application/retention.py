"""How long what is stored stays: by age, thinned on the way, and never more than a fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HOUR, DAY = 3600, 86400

# A twentieth of what is oldest goes at a time, so that no deletion holds the writer for long.
TRIM = tuple(
    f"DELETE FROM {table} WHERE {key} <= (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 "
    f"OFFSET (SELECT count(*) / 20 FROM {table}))"
    for table, key in (("frames", "ts"), ("samples", "ts"), ("events", "id"))
)
TRIM_REQUESTS = (
    "DELETE FROM requests WHERE ended_at <= (SELECT ended_at FROM requests WHERE ended_at IS NOT NULL "
    "ORDER BY ended_at LIMIT 1 OFFSET (SELECT count(*) / 20 FROM requests))"
)

Statement = tuple[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Retention:
    """Ages in seconds. At 20 KB a Frame the tiers hold 72 + 166 + 173 MB; the usual Frame is a tenth of that."""

    frames: tuple[tuple[int, int], ...] = ((HOUR, 10), (DAY, 60))  # older than this: one in so many seconds
    frames_s: int = 7 * DAY
    samples_s: int = 7 * DAY
    events_s: int = 7 * DAY
    requests_s: int = 30 * DAY
    max_bytes: int = 512 << 20

    def by_age(self, now: float, since: float) -> Iterator[Statement]:
        """Statements that delete what has become too old between the Unix times `since` and `now`."""
        for age, every in self.frames:
            reached = (since - age) * 1000, (now - age) * 1000
            yield "DELETE FROM frames WHERE ts >= ? AND ts < ? AND ts / 1000 % ? <> 0", (*reached, every)
        yield "DELETE FROM frames WHERE ts < ?", ((now - self.frames_s) * 1000,)
        yield "DELETE FROM samples WHERE ts < ?", ((now - self.samples_s) * 1000,)
        yield "DELETE FROM events WHERE at < ?", (now - self.events_s,)
        yield "DELETE FROM requests WHERE ended_at < ?", (now - self.requests_s,)
        yield "DELETE FROM gaps WHERE to_at < ?", (now - self.requests_s,)
        yield "DELETE FROM runs WHERE stopped_at < ?", (now - self.requests_s,)

    def by_size(self, used_bytes: int, frames: int) -> Iterator[Statement]:
        """Statements that trim what is oldest where the size is exceeded: telemetry first, then requests."""
        if used_bytes > self.max_bytes:
            yield from ((statement, ()) for statement in (TRIM if frames else (*TRIM, TRIM_REQUESTS)))
