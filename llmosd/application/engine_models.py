"""Loads and unloads that somebody asked for: begun between two steps, answered when they are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmosd.application.engine_messages import LoadModel, Reply, UnloadModel
from llmosd.errors import ModelError
from llmosd.system.kernels import Kernels
from llmosd.types import Event, LoadFailed, Nanoseconds


class ModelCommands:
    """On the engine's thread. What is open when the engine ends is answered by whoever answers all that is."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._open: list[LoadModel | UnloadModel] = []

    def apply(self, command: LoadModel | UnloadModel, now: Nanoseconds) -> None:
        """Raises NotFound for a model that is not known, InvalidRequest for one that may not be unloaded."""
        if isinstance(command, LoadModel):
            self._kernels.load(command.model, now)
        else:
            self._kernels.unload(command.model)
        self._open.append(command)

    def replies(self, events: Iterable[Event] = ()) -> Iterator[Reply]:
        """To all that are done, or were overtaken by the opposite command or by a request, after these events."""
        if not self._open:  # nearly always
            return
        failed = {event.model: event.error for event in events if isinstance(event, LoadFailed)}
        for command in tuple(self._open):
            member = self._kernels.residency.members[command.model]
            if not (member.leaving if isinstance(command, UnloadModel) else member.wanted):
                self._open.remove(command)
                error = failed.get(command.model) if isinstance(command, LoadModel) else None
                value = ModelError(f"{command.model} could not be loaded: {error}") if error else member.stats()
                yield Reply(command.ticket, value)
