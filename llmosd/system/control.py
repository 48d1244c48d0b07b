"""Process control: one thing done to one request or to many, all at the same moment, between two steps.

Which requests a filter means is settled when it is done, so that none comes or goes in between. Either it is done to
all of them or, where one of them may not be touched, to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmosd.errors import Forbidden
from llmosd.system.admission import validate_nice
from llmosd.system.kernels import Kernels
from llmosd.types import Ended, Event, Nanoseconds, RequestId, RequestView, ServiceClass, State

FILTERS = ("user", "session", "state", "model", "service_class")


@dataclass(frozen=True, slots=True)
class Selection:
    """Live requests: those of `ids`, which must be there, or all that have whatever else is given."""

    ids: tuple[RequestId, ...] = ()
    user: str | None = None
    session: str | None = None
    state: State | None = None
    model: str | None = None
    service_class: ServiceClass | None = None

    def matches(self, view: RequestView) -> bool:
        """Whether it has all that is given beside ids."""
        wanted = {name: getattr(self, name) for name in FILTERS}
        return all(value is None or getattr(view, name) == value for name, value in wanted.items())


@dataclass(frozen=True, slots=True)
class Kill:
    """End them now; `reason` is what their clients hear."""

    reason: str


@dataclass(frozen=True, slots=True)
class Nice:
    """Give them this nice value, which counts from the next plan on."""

    value: int


@dataclass(frozen=True, slots=True)
class Suspend:
    """Let them stand still; one that does is left alone."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let those that stand still go on; others are left alone."""


Action = Kill | Nice | Suspend | Resume


def control(
    kernels: Kernels, action: Action, selection: Selection, owner: str | None, now: Nanoseconds
) -> tuple[tuple[RequestView, ...], list[Event]]:
    """The requests it was done to, as they are afterwards. `owner` may touch requests of this user only, None any.

    A filter passes over what belongs to others, unless it names another user. Raises NotFound (an id that is not
    live), Forbidden (another user's) or InvalidRequest (nice out of range); then nothing has changed.
    """
    if isinstance(action, Nice):
        validate_nice(action.value, "nice")
    found = _find(kernels, selection, owner)
    views, events = list[RequestView](), list[Event]()
    for view in found:
        changed, happened = _apply(kernels, action, view.id, now)
        views.append(changed)
        events += happened
    return tuple(views), events


def _find(kernels: Kernels, selection: Selection, owner: str | None) -> Sequence[RequestView]:
    if selection.ids:
        views = [kernels.view(id) for id in dict.fromkeys(selection.ids)]
        if others := [view.id for view in views if owner not in (None, view.user)]:
            raise Forbidden(f"request {others[0]} is another user's: to control it takes a key with the right admin")
        return views
    if selection.user is not None and owner not in (None, selection.user):
        raise Forbidden(
            f"requests of the user {selection.user!r} are not yours: to control them takes a key with the right admin"
        )
    return [view for view in kernels.views() if selection.matches(view) and owner in (None, view.user)]


def _apply(kernels: Kernels, action: Action, id: RequestId, now: Nanoseconds) -> tuple[RequestView, list[Event]]:
    match action:
        case Kill(reason=reason):
            events = kernels.cancel(id, reason, now)
            ended = events[-1]
            assert isinstance(ended, Ended)
            return ended.request, events
        case Nice(value=value):
            return kernels.renice(id, value, now), []
        case Suspend():
            return kernels.suspend(id, now)
        case Resume():
            return kernels.resume(id, now)
