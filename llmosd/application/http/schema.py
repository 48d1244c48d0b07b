"""Bodies of the OpenAI-compatible endpoints: what is accepted, in which range, and what is refused by name.

Nothing is ignored silently. Every field is either implemented (a field of the struct), or one of OpenAI's that is not
implemented and may only hold a value that asks for nothing (`unimplemented.py`), or refused. `null` means "the default"
everywhere, as in OpenAI's API.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Literal, TypeVar

import msgspec

from llmosd.application.http.decode import decode_object
from llmosd.application.http.unimplemented import (
    CHAT_UNIMPLEMENTED,
    COMPLETION_UNIMPLEMENTED,
    MESSAGE_UNIMPLEMENTED,
    STREAM_UNIMPLEMENTED,
)
from llmosd.errors import InvalidRequest
from llmosd.types import NICE_MAX, NICE_MIN, Sampling, ServiceClass

MAX_CHOICES = 128
MAX_PROMPTS = 128
MAX_STOPS = 4
MAX_LOGPROBS = 20
MAX_USER = 256
MAX_DEADLINE_MS = 365 * 86_400_000
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions; a chat runs to what fits

_NULL = msgspec.Raw(b"null")


class StreamOptions(msgspec.Struct):
    """`continuous_usage_stats` is vLLM's: running usage figures on every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class LlmosOptions(msgspec.Struct):
    """`explain` puts where the time went into `usage.llmos`."""

    explain: bool | None = None


class GenerationBody(msgspec.Struct, kw_only=True):
    """What both endpoints take. Last blocks: extensions, named as in vLLM, and those of this daemon."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw = _NULL
    user: str | None = None
    metadata: dict[str, str] | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    service_class: ServiceClass | None = None

    llmos: msgspec.Raw = _NULL
    deadline_ms: int | None = None

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def nice(self) -> int:
        return self.priority or 0

    def streaming(self) -> StreamOptions | None:
        """None where the answer is not streamed."""
        if self.stream_options == _NULL:
            return StreamOptions() if self.stream else None
        if not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream: true", param="stream_options")
        return decode_object(self.stream_options, StreamOptions, STREAM_UNIMPLEMENTED, "stream_options")

    def explains(self) -> bool:
        if self.llmos == _NULL or not decode_object(self.llmos, LlmosOptions, {}, "llmos").explain:
            return False
        if (options := self.streaming()) and not options.include_usage:
            raise InvalidRequest(
                "llmos.explain comes with the usage figures: a stream needs stream_options.include_usage: true",
                param="llmos.explain",
            )
        return True


class TextPart(msgspec.Struct):
    type: Literal["text"]
    text: str


class Message(msgspec.Struct):
    role: Literal["system", "user", "assistant"]
    content: str | list[msgspec.Raw]


class ChatBody(GenerationBody, kw_only=True):
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def conversation(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them; parts of a content are joined."""
        return [_message(raw, f"messages[{i}]") for i, raw in enumerate(self.messages)]

    def sampling(self) -> Sampling:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest("max_tokens and max_completion_tokens differ: give one", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        _between("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        _between("max_completion_tokens", self.max_completion_tokens, 1)
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return _sampling(self, limit, (self.top_logprobs or 0) if self.logprobs else None)


class CompletionBody(GenerationBody, kw_only=True):
    prompt: str | Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]
    logprobs: int | None = None

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt: text, or token ids as given (not yet checked against a vocabulary)."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [item for item in self.prompt if isinstance(item, int)]
        if ids and len(ids) != len(self.prompt):
            raise InvalidRequest("prompt mixes token ids with texts or lists", param="prompt")
        prompts: list[str | list[int]] = [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequest(f"{len(prompts)} prompts; at most {MAX_PROMPTS} in one request", param="prompt")
        return prompts

    def sampling(self) -> Sampling:
        _between("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        limit = COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return _sampling(self, limit, self.logprobs)


class PriorityBody(msgspec.Struct):
    """PATCH /v1/requests/{id}."""

    priority: int


def chat_body(raw: bytes) -> ChatBody:
    return decode_object(raw, ChatBody, CHAT_UNIMPLEMENTED)


def completion_body(raw: bytes) -> CompletionBody:
    return decode_object(raw, CompletionBody, COMPLETION_UNIMPLEMENTED)


def priority_of(raw: bytes) -> int:
    priority = decode_object(raw, PriorityBody, {}).priority
    _between("priority", priority, NICE_MIN, NICE_MAX)
    return priority


def user_of(body: GenerationBody) -> str:
    """The name that the body gives its user."""
    return _name("user", body.user)


def session_of(body: GenerationBody, header: str | None) -> str:
    """What the request is part of: `metadata.session`, else the header X-Session-Id; empty where neither is there."""
    metadata = body.metadata or {}
    for name in metadata.keys() - {"session"}:
        raise InvalidRequest(f"metadata.{name[:MAX_USER]} is not implemented: session is", param="metadata")
    return _name("metadata.session", metadata.get("session")) or _name("X-Session-Id", header)


def _name(param: str, name: str | None) -> str:
    """Shown by monitors and stored, so it may hold nothing that drives a terminal."""
    name = name or ""
    if len(name) > MAX_USER or not name.isprintable():
        raise InvalidRequest(f"{param} must be printable and at most {MAX_USER} characters", param=param)
    return name


def _message(raw: msgspec.Raw, where: str) -> dict[str, str]:
    message = decode_object(raw, Message, MESSAGE_UNIMPLEMENTED, where)
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = (decode_object(part, TextPart, {}, f"{where}.content[{i}]") for i, part in enumerate(message.content))
    return {"role": message.role, "content": "".join(part.text for part in parts)}


def _sampling(body: GenerationBody, max_tokens: int | None, logprobs: int | None) -> Sampling:
    _check_ranges(body)
    return Sampling(
        max_tokens=max_tokens,
        temperature=_given(body.temperature, 1.0),
        top_p=_given(body.top_p, 1.0),
        top_k=max(0, _given(body.top_k, 0)),
        min_p=_given(body.min_p, 0.0),
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        logprobs=logprobs,
        stop=_stops(body.stop),
        n=body.choices,
        ignore_eos=bool(body.ignore_eos),
    )


def _check_ranges(body: GenerationBody) -> None:
    _between("max_tokens", body.max_tokens, 1)
    _between("temperature", body.temperature, 0, 2)
    _between("top_p", body.top_p, 0, 1)
    _between("frequency_penalty", body.frequency_penalty, -2, 2)
    _between("presence_penalty", body.presence_penalty, -2, 2)
    _between("n", body.n, 1, MAX_CHOICES)
    _between("seed", body.seed, -(2**63), 2**63 - 1)
    _between("top_k", body.top_k, -1)  # −1 is vLLM's and 0 this house's way to say "all"
    _between("min_p", body.min_p, 0, 1)
    _check_deadline(body.deadline_ms)
    _between("priority", body.priority, NICE_MIN, NICE_MAX)
    if body.repetition_penalty is not None and body.repetition_penalty <= 0:
        raise InvalidRequest("repetition_penalty must be above 0", param="repetition_penalty")


def _check_deadline(ms: int | None) -> None:
    if ms is not None and ms <= 0:
        raise InvalidRequest(
            f"deadline_ms is {ms}: the deadline is in the past; give the milliseconds that the request may take",
            param="deadline_ms",
        )
    _between("deadline_ms", ms, 1, MAX_DEADLINE_MS)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or "" in stops:
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings, none of them empty", param="stop")
    return stops


def _between(name: str, value: float | None, low: float, high: float | None = None) -> None:
    if value is None or (low <= value and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise InvalidRequest(f"{name} is {value}; it must be {allowed}", param=name)


T = TypeVar("T")


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
