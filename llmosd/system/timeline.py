"""When each state of a request began, in a bounded list: beginning and end are kept, what is between may be merged."""

from __future__ import annotations

from llmosd.types import Nanoseconds, State, Timeline

MOST = 64
SEVERAL = "several"  # in the place of changes that were too many to keep
DOWN = "down"  # no daemon ran
_FIRST = 24


def extended(timeline: Timeline, state: State | str, at: Nanoseconds) -> Timeline:
    """With a change more, `at` nanoseconds after the request's arrival."""
    if len(timeline) < MOST:
        return (*timeline, (str(state), at))
    several = SEVERAL, timeline[_FIRST][1]
    return (*timeline[:_FIRST], several, *timeline[_FIRST + 2 :], (str(state), at))
