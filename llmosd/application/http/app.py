"""The HTTP API: routes and what stands before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmosd.application.access import Access
from llmosd.application.batch.batches import Batches
from llmosd.application.commands import Commands
from llmosd.application.http.batches import BatchesEndpoint
from llmosd.application.http.chat import ChatEndpoint
from llmosd.application.http.completions import CompletionsEndpoint
from llmosd.application.http.control import ControlEndpoint
from llmosd.application.http.edge import Edge, Observe
from llmosd.application.http.errors import on_http_error, on_llmos_error
from llmosd.application.http.files import FilesEndpoint
from llmosd.application.http.generation import Backing
from llmosd.application.http.models import ModelsEndpoint
from llmosd.application.http.policy import PolicyEndpoint
from llmosd.application.http.reply import ok
from llmosd.application.http.requests import RequestsEndpoint
from llmosd.application.http.rights import guarded
from llmosd.application.memory import MemoryInfo
from llmosd.application.service import Phase, Service
from llmosd.errors import LlmosError, Unavailable

Status = Callable[[], Mapping[str, Any]]


def create_app(
    backing: Backing,
    batches: Batches,
    *,
    access: Access,
    host: str,
    registry: CollectorRegistry,
    status: Status,
    observe: Observe,
) -> Starlette:
    """`access` says who may do what, `host` is the address the server is bound to, `status` gives what
    `llmosd status --json` shows, `observe` counts HTTP requests. The application has no life of its own: service and
    server are started and stopped outside.
    """
    service, models, commands = backing.service, ModelsEndpoint(backing), Commands(backing.service)
    requests = RequestsEndpoint(backing, commands)
    files, jobs = FilesEndpoint(batches), BatchesEndpoint(batches)
    routes = [
        Route("/v1/chat/completions", ChatEndpoint(backing).post, methods=["POST"]),
        Route("/v1/completions", CompletionsEndpoint(backing).post, methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{id:path}/load", models.load, methods=["POST"]),
        Route("/v1/models/{id:path}/unload", models.unload, methods=["POST"]),
        Route("/v1/models/{id:path}", models.get, methods=["GET"]),
        Route("/v1/files", files.collection, methods=["GET", "POST"]),
        Route("/v1/files/{id}", files.one, methods=["GET", "DELETE"]),
        Route("/v1/files/{id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", jobs.collection, methods=["GET", "POST"]),
        Route("/v1/batches/{id}", jobs.get, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", jobs.cancel, methods=["POST"]),
        Route("/v1/requests", requests.list, methods=["GET"]),
        Route("/v1/requests/{id}", requests.one, methods=["GET", "DELETE", "PATCH"]),
        Route("/v1/requests/{id}/suspend", requests.suspend, methods=["POST"]),
        Route("/v1/requests/{id}/resume", requests.resume, methods=["POST"]),
        Route("/v1/requests/{id}/hibernate", requests.hibernate, methods=["POST"]),
        Route("/v1/requests/{id}/stream", requests.stream, methods=["GET"]),
        Route("/v1/control", ControlEndpoint(commands).post, methods=["POST"]),
        Route("/v1/hibernate", requests.hibernate_all, methods=["POST"]),
        Route("/v1/policy", PolicyEndpoint(service).one, methods=["GET", "PUT"]),
        Route("/v1/memory", _memory(service), methods=["GET"]),
        Route("/v1/status", _status(status), methods=["GET"]),
        Route("/health", _health(service), methods=["GET"]),
        Route("/metrics", _metrics(registry), methods=["GET"]),
    ]
    return Starlette(
        routes=[guarded(route) for route in routes],
        middleware=[Middleware(Edge, service=service, access=access, host=host, observe=observe)],
        exception_handlers={LlmosError: on_llmos_error, HTTPException: on_http_error},
    )


Endpoint = Callable[[Request], Awaitable[Response]]


def _status(status: Status) -> Endpoint:
    async def get(_request: Request) -> Response:
        return ok(status())

    return get


def _memory(service: Service) -> Endpoint:
    async def get(_request: Request) -> Response:
        return ok(MemoryInfo.of(await service.inspect()))

    return get


def _health(service: Service) -> Endpoint:
    """For load balancers: 503 while no new requests are taken."""

    async def get(_request: Request) -> Response:
        if service.failure or service.phase is not Phase.SERVING:
            raise Unavailable(service.failure or f"the daemon is {service.phase}")
        return ok({"status": "ok"})

    return get


def _metrics(registry: CollectorRegistry) -> Endpoint:
    """In the format that the scraper's Accept header asks for."""

    async def get(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return get
