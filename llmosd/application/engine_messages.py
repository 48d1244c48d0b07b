"""What goes into the engine and what comes out of it: commands in, one batch a step out. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from llmosd.errors import LlmosError
from llmosd.record import record
from llmosd.system.control import Action, Selection
from llmosd.system.residency import ModelEntry
from llmosd.system.snapshot import KeptPages, Snapshot
from llmosd.types import Event, KernelStats, ModelStats, Nanoseconds, RequestId, RequestSpec, RequestView, StepStats


@dataclass(frozen=True, slots=True)
class Submit:
    """Answered with the accepted request's view."""

    ticket: int
    spec: RequestSpec


@dataclass(frozen=True, slots=True)
class Control:
    """Does one thing to all requests of a selection; answered with their views, those that it ended included.

    `owner` is the user whose requests alone may be touched, None for all.
    """

    ticket: int
    action: Action
    selection: Selection
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Its client reads too slowly. Answered with None, as all that concerns the flow to a client."""

    ticket: int
    id: RequestId


@dataclass(frozen=True, slots=True)
class Unpause:
    """Its client has read what there was."""

    ticket: int
    id: RequestId


@dataclass(frozen=True, slots=True)
class Hibernate:
    """Suspends these requests, all live ones where `ids` is None; answered with a tuple of their snapshots."""

    ticket: int
    ids: tuple[RequestId, ...] | None


@dataclass(frozen=True, slots=True)
class ReadPages:
    """Answered with the PageContents that are worth keeping of a suspended request's pages, None if there are none."""

    ticket: int
    id: RequestId


@dataclass(frozen=True, slots=True)
class PageContents:
    """K and V of pages, `bytes_per_page` each, in the order of their numbers."""

    kept: KeptPages
    bytes_per_page: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Restore:
    """Takes up a request of an earlier engine, suspended; answered with its view."""

    ticket: int
    snapshot: Snapshot
    arrived: Nanoseconds
    contents: PageContents | None = None


@dataclass(frozen=True, slots=True)
class AddModel:
    """Makes a model known, which is loaded when it is asked for; answered with None."""

    ticket: int
    entry: ModelEntry


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Lets another policy order the requests of all models, from the next step on; answered with None."""

    ticket: int
    policy: str


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Loads a model that is known; answered with its ModelStats when it is in memory, or is not to be any more."""

    ticket: int
    model: str


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Answered with its ModelStats when it is out of memory, or is to stay after all; requests in it end before."""

    ticket: int
    model: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Answered with KernelStats, the live requests included."""

    ticket: int


AtOnce = Submit | Control | Pause | Unpause | Hibernate | ReadPages | Restore | AddModel | SetPolicy | Inspect
Command = AtOnce | LoadModel | UnloadModel
Answer = RequestView | KernelStats | ModelStats | tuple[RequestView, ...] | tuple[Snapshot, ...] | PageContents | None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the command with this ticket; every command gets exactly one."""

    ticket: int
    value: Answer | LlmosError


@record(frozen=True, slots=True)
class Batch:
    """One hand-over: what a drain of the commands gave (`step` None), or what a step gave.

    `stats` are as of now, or a little older where there is nothing but output.
    """

    replies: tuple[Reply, ...]
    events: tuple[Event, ...]
    step: StepStats | None
    stats: KernelStats
