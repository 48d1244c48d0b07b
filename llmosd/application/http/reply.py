"""JSON answers."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


def ok(payload: Any) -> Response:
    return Response(msgspec.json.encode(payload), media_type="application/json")


class Listing(msgspec.Struct):
    """OpenAI's shape of a list."""

    data: list[Any]
    object: str = "list"
