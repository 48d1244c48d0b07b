"""Errors in OpenAI's shape, and the HTTP status of each kind."""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llmosd.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    LlmosError,
    NotFound,
    QueueFull,
    RateLimited,
    StepError,
    Unauthorized,
    Unavailable,
)


class BodyTooLarge(InvalidRequest):
    """The request body exceeds the limit."""

    code = "body_too_large"


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


# The first entry an error is an instance of decides. 499 is the custom for "cancelled" (nginx, gRPC gateways);
# unlike 409 or a 5xx it does not make OpenAI's clients repeat a request that somebody has just cancelled.
_KINDS: tuple[tuple[type[LlmosError], int, str], ...] = (
    (BodyTooLarge, 413, "invalid_request_error"),
    (Unauthorized, 401, "invalid_request_error"),
    (Forbidden, 403, "permission_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (NotFound, 404, "invalid_request_error"),
    (QueueFull, 429, "rate_limit_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (Cancelled, 499, "cancelled_error"),
    (Unavailable, 503, "unavailable_error"),
    (LlmosError, 500, "server_error"),
)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def _kind(error: LlmosError) -> tuple[int, str]:
    return next((status, name) for leaf, status, name in _KINDS if isinstance(error, leaf))


def error_body(error: LlmosError) -> ErrorBody:
    return ErrorBody(ErrorDetail(error.message, _kind(error)[1], error.code, error.param))


def error_response(error: LlmosError) -> Response:
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited) and error.tokens is not None:
        headers |= _rate_headers(*error.tokens)
    if isinstance(error, StepError | DeadlineExceeded):
        headers["X-Should-Retry"] = "false"  # OpenAI's clients repeat a 5xx otherwise; it would end the same way
    if isinstance(error, BodyTooLarge):
        headers["Connection"] = "close"  # some of the body may not have been read
    return _json(error_body(error), _kind(error)[0], headers)


def _rate_headers(limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    """OpenAI's names."""
    return {
        "x-ratelimit-limit-tokens": str(limit),
        "x-ratelimit-remaining-tokens": str(remaining),
        "x-ratelimit-reset-tokens": f"{reset_s:.3f}s",
    }


async def on_llmos_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmosError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown path and wrong method, which the router finds."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = f"{what} is not part of this API" if error.status_code == 404 else f"{what}: {error.detail}"
    code = _HTTP_CODES.get(error.status_code, "http_error")
    body = ErrorBody(ErrorDetail(message, "invalid_request_error", code, None))
    return _json(body, error.status_code, dict(error.headers or {}))


def defect_response() -> Response:
    """For what must not happen. The traceback goes to the log; the client learns where to look."""
    message = "internal error; the daemon's log has details"
    return _json(ErrorBody(ErrorDetail(message, "server_error", "internal_error", None)), 500, {})


def _json(body: ErrorBody, status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
