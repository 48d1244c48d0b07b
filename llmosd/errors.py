"""Every error a user can see: what was wrong, and what to do about it.

One root, few leaves. A leaf says who has to act; the HTTP layer maps leaves to status codes and the
command line maps them to exit codes, so that nothing else needs to know either.
"""

from __future__ import annotations


class LlmosError(Exception):
    """Root of all errors that are reported to a user rather than treated as a defect."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(LlmosError):
    """The caller asked for something that cannot be done as asked (HTTP 400, exit 2)."""

    code = "invalid_request"


class ContextTooLong(InvalidRequest):
    """Prompt and completion cannot fit the model's context or the page pool alone (HTTP 400)."""

    code = "context_length_exceeded"


class DoesNotFit(InvalidRequest):
    """A model is larger than the memory it may have (HTTP 400)."""

    code = "model_too_large"


class Unauthorized(InvalidRequest):
    """No key came along, or one that this daemon does not know (HTTP 401, exit 2)."""

    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """Whoever asked may not do this here (HTTP 403, exit 2)."""

    code = "forbidden"


class NotFound(LlmosError):
    """No such model, request or endpoint (HTTP 404, exit 2)."""

    code = "not_found"


class QueueFull(LlmosError):
    """The bounded queue is full (HTTP 429 with Retry-After)."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(QueueFull):
    """A user has as many requests as they may, or spends tokens faster than they may (HTTP 429 with Retry-After).

    `tokens` is, of a token rate, how many can be had at once, how many are left, and the seconds until all are back.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, tokens: tuple[int, int, float] | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.tokens = tokens


class QueueTimeout(QueueFull):
    """The request was not admitted in the time that it may wait for that (HTTP 429 with Retry-After)."""

    code = "queue_timeout"


class DeadlineExceeded(LlmosError):
    """The request's deadline passed before it had ended (HTTP 504)."""

    code = "deadline_exceeded"


class Unavailable(LlmosError):
    """The daemon, the model or the broker is not there now: starting, draining, stopped (HTTP 503, exit 3)."""

    code = "unavailable"


class Cancelled(LlmosError):
    """The request was cancelled by somebody while its caller waited for it (HTTP 499)."""

    code = "request_cancelled"


class ConfigError(LlmosError):
    """A flag, environment variable or config file holds something unusable (exit 2)."""

    code = "config_error"


class ModelError(LlmosError):
    """A model cannot be fetched, imported, verified or loaded (exit 1)."""

    code = "model_error"


class StepError(LlmosError):
    """One engine step failed; the engine retries it and then isolates the culprit (HTTP 500)."""

    code = "step_failed"
