"""The models that requests may name: the default one, and any other that is installed, made known on first use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmosd.application.image import Numerics
from llmosd.application.prompts import Prompts
from llmosd.application.service import Service
from llmosd.errors import NotFound, Unavailable
from llmosd.system.residency import ModelEntry


class ModelNotFound(NotFound):
    """No such model is installed."""

    code = "model_not_found"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as clients see it."""

    id: str
    context: int
    created: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that the engine knows, loaded or not, and what the front end needs to talk to it."""

    card: ModelCard
    prompts: Prompts
    numerics: Numerics

    @property
    def id(self) -> str:
        return self.card.id


Open = Callable[[str], tuple[ServedModel, ModelEntry]]
"""Makes an installed model ready to be known to the engine. Blocking; raises NotFound, ModelError, ConfigError."""


def _no_other(name: str) -> tuple[ServedModel, ModelEntry]:
    raise NotFound(name)


class Models:
    def __init__(
        self,
        service: Service,
        first: ServedModel,
        *others: ServedModel,
        open: Open = _no_other,
        installed: Callable[[], Sequence[ModelCard]] = list,
    ) -> None:
        """The engine knows `first` and `others` already; `installed` lists all there are, and blocks."""
        self.first = first
        self._service = service
        self._known = {model.id: model for model in (first, *others)}
        self._open = open
        self._installed = installed
        self._opening = asyncio.Lock()

    async def get(self, name: str) -> ServedModel:
        """Raises ModelNotFound, DoesNotFit where it is larger than the memory for it, ModelError where it is broken."""
        if name not in self._known:
            async with self._opening:
                if name not in self._known:
                    self._known[name] = await self._make_known(name)
        return self._known[name]

    async def load(self, name: str) -> None:
        """Return when it is in memory. Raises what `get` raises, and Unavailable where it is unloaded again at once."""
        await self.get(name)
        if not (await self._service.load_model(name)).resident:
            raise Unavailable(f"{name} is not loaded: it was to be unloaded meanwhile")

    async def unload(self, name: str) -> None:
        """Return when it is out of memory, as soon as its requests have ended; one that is not there is left alone.

        Raises ModelNotFound, InvalidRequest for one that is pinned, Unavailable where it is asked for again meanwhile.
        """
        if name not in self._known:
            await self._check_installed(name)
        elif (await self._service.unload_model(name)).resident:
            raise Unavailable(f"{name} stays in memory: it was to be loaded meanwhile")

    async def _check_installed(self, name: str) -> None:
        names = [card.id for card in await self.installed()]
        if name not in names:
            there = ", ".join(map(repr, names))
            raise ModelNotFound(f"the model {name!r} is not installed here; there is {there}", param="model")

    async def _make_known(self, name: str) -> ServedModel:
        try:
            model, entry = await asyncio.to_thread(self._open, name)
        except NotFound:
            await self._check_installed(name)
            raise
        await self._service.add_model(entry)
        return model

    async def installed(self) -> list[ModelCard]:
        """All that can be asked for, the default one first."""
        cards = {card.id: card for card in (self.first.card, *await asyncio.to_thread(self._installed))}
        return list(cards.values())
