"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.generation import Backing, Model, check_model
from llmosd.application.http.reply import Listing, ok


class ModelCard(msgspec.Struct):
    """OpenAI's fields, and the context's length under vLLM's name."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "llmos"


class ModelsEndpoint:
    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def list(self, _request: Request) -> Response:
        return ok(Listing([_card(self._backing.model)]))

    async def get(self, request: Request) -> Response:
        check_model(self._backing, request.path_params["id"])
        return ok(_card(self._backing.model))


def _card(model: Model) -> ModelCard:
    return ModelCard(model.id, model.created, model.context)
