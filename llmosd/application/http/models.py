"""/v1/models: which there are, and loading and unloading them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application import models
from llmosd.application.http.generation import Backing
from llmosd.application.http.reply import Listing, ok
from llmosd.types import ModelStats


class ModelCard(msgspec.Struct):
    """OpenAI's fields, the context's length under vLLM's name, and whether the model is in memory now."""

    id: str
    created: int
    max_model_len: int
    resident: bool
    pinned: bool
    object: str = "model"
    owned_by: str = "llmos"


class ModelsEndpoint:
    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def list(self, _request: Request) -> Response:
        return ok(Listing(list(await self._cards())))

    async def get(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        found = next((card for card in await self._cards() if card.id == wanted), None)
        if found is None:
            raise models.ModelNotFound(f"no model {wanted!r} is installed here", param="model")
        return ok(found)

    async def load(self, request: Request) -> Response:
        """Answered when it is in memory."""
        await self._backing.models.load(request.path_params["id"])
        return await self.get(request)

    async def unload(self, request: Request) -> Response:
        """Answered when it is out of memory: what runs or waits there ends before."""
        await self._backing.models.unload(request.path_params["id"])
        return await self.get(request)

    async def _cards(self) -> Sequence[ModelCard]:
        """All that are installed, the default one first."""
        stats = {model.name: model for model in (await self._backing.service.inspect()).models}
        return [_card(card, stats.get(card.id)) for card in await self._backing.models.installed()]


def _card(card: models.ModelCard, stats: ModelStats | None) -> ModelCard:
    resident, pinned = (stats.resident, stats.pinned) if stats else (False, False)
    return ModelCard(card.id, card.created, card.context, resident, pinned)
