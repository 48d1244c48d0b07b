"""What both generating endpoints share: bodies to requests, requests to one ordered stream of choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from starlette.requests import Request

from llmosd.application.explain import Latency
from llmosd.application.hibernation import Hibernation
from llmosd.application.http.edge import arrived, request_id, service_class
from llmosd.application.http.errors import error_body
from llmosd.application.http.rights import caller_of
from llmosd.application.http.schema import GenerationBody, StreamOptions, session_of, user_of
from llmosd.application.http.sse import DONE, EventStream, on_disconnect, sse
from llmosd.application.models import Models, ServedModel
from llmosd.application.service import Service
from llmosd.application.stream import RequestStream, together
from llmosd.errors import LlmosError
from llmosd.types import FinishReason, Output, RequestSpec, Sampling, TokenLogprob

_LABEL = 60  # characters of a prompt that a monitor shows, where the user turned log_prompts on


@dataclass(frozen=True, slots=True)
class Backing:
    """What a generating endpoint stands on."""

    service: Service
    hibernation: Hibernation
    models: Models
    log_prompts: bool = False


class PromptDetails(msgspec.Struct):
    cached_tokens: int  # found in the prefix cache, not computed


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    llmos: Latency | msgspec.UnsetType = msgspec.UNSET


UsageField = Usage | msgspec.UnsetType | None  # of a chunk


@dataclass(slots=True)
class Choice:
    """One finished alternative of one prompt."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, output: Output) -> None:
        self.texts.append(output.text)
        self.logprobs.extend(output.logprobs)
        self.finish = output.finish or self.finish


class Generation:
    """The requests behind one HTTP request: a prompt each, n choices each, numbered prompt × n + choice."""

    def __init__(self, streams: Sequence[RequestStream], prompt_tokens: int, n: int, explain: bool) -> None:
        self._streams = streams
        self._explain = explain
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._n = n

    @property
    def usage(self) -> Usage:
        """So far. A prompt counts once however many choices it has."""
        total = self._prompt_tokens + self._completion_tokens
        cached = sum(min(stream.view.prompt_tokens, stream.view.reused_tokens) for stream in self._streams)
        return Usage(self._prompt_tokens, self._completion_tokens, total, PromptDetails(cached), self._latency())

    def _latency(self) -> Latency | msgspec.UnsetType:
        """Once all have ended: of the prompt whose request took longest, for which the answer waited."""
        if not self._explain or not all(stream.over for stream in self._streams):
            return msgspec.UNSET
        return Latency.of(max((stream.view for stream in self._streams), key=lambda view: view.times.total))

    def running_usage(self, options: StreamOptions) -> UsageField:
        """On a chunk before the last: null where the figures will come at the end, as in OpenAI's streams."""
        if options.continuous_usage_stats:
            return self.usage
        return None if options.include_usage else msgspec.UNSET

    async def outputs(self) -> AsyncGenerator[list[tuple[int, Output]], None]:
        """What came since the last time, each with the index of its choice. Raises what ended a request early."""
        async for came in together(self._streams):
            yield [(prompt * self._n + output.choice, output) for prompt, output in came]

    def count(self, output: Output) -> None:
        """It is part of the answer from now on."""
        self._completion_tokens += len(output.tokens)

    async def choices(self, request: Request) -> list[Choice]:
        """All of them, complete. A client that leaves meanwhile cancels the requests."""
        choices = [Choice(index) for index in range(len(self._streams) * self._n)]
        try:
            async with on_disconnect(request.receive, self.abandon):
                async for came in self.outputs():
                    for index, output in came:
                        self.count(output)
                        choices[index].add(output)
        finally:
            self.close()
        return choices

    def abandon(self) -> None:
        self._close("the client disconnected")

    def close(self) -> None:
        """Cancel what has not ended, as when another prompt's request failed."""
        self._close("the answer it belonged to was given up")

    def _close(self, reason: str) -> None:
        for stream in self._streams:
            stream.close(reason)


async def begin(
    request: Request,
    backing: Backing,
    model: ServedModel,
    body: GenerationBody,
    sampling: Sampling,
    tokens: Awaitable[Sequence[list[int]]],
    text: str,
) -> Generation:
    """Submit one request a prompt, whose `tokens` are being made; all are accepted or none is.

    Raises what the service raises.
    """
    began, prompts = backing.service.clock(), await tokens
    explain, ready = body.explains(), backing.service.clock()
    caller, named = caller_of(request), user_of(body)
    spec = RequestSpec(
        id=request_id(request),
        model=model.id,
        prompt=(),
        sampling=sampling,
        user=named if caller.user is None else caller.user,
        nice=body.nice,
        cache_salt=_salt(caller.user, body.cache_salt or ""),
        arrived=arrived(request),
        ready=ready,
        tokenise=ready - began,
        deadline=None if body.deadline_ms is None else arrived(request) + body.deadline_ms * 1_000_000,
        created_at=time.time(),
        label=_label("" if caller.user is None else named, text if backing.log_prompts else ""),
        session=session_of(body, request.headers.get("x-session-id")) or request_id(request),
        service_class=service_class(request) or body.service_class or "interactive",
    )
    specs = [replace(spec, prompt=prompt, id=_numbered(spec.id, i)) for i, prompt in enumerate(prompts)]
    results = await asyncio.gather(*map(backing.service.submit, specs), return_exceptions=True)
    streams = [result for result in results if isinstance(result, RequestStream)]
    generation = Generation(streams, sum(map(len, prompts)), sampling.n, explain)
    if errors := [result for result in results if isinstance(result, BaseException)]:
        generation.close()
        raise errors[0]
    return generation


Encode = Callable[[int, Output], bytes]


def streamed(
    generation: Generation, options: StreamOptions, encode: Encode, last: Callable[[], msgspec.Struct]
) -> EventStream:
    """`encode` makes an output's events; `last` the chunk with the usage figures, sent where they were asked for."""

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            async for came in generation.outputs():
                events = []
                for index, output in came:
                    generation.count(output)
                    events.append(encode(index, output))
                yield b"".join(events)
            yield sse(last()) + DONE if options.include_usage else DONE
        except LlmosError as error:
            yield sse(error_body(error))
        finally:
            generation.close()

    return EventStream(events(), generation.abandon)


def _numbered(id: str, prompt: int) -> str:
    return f"{id}-{prompt}" if prompt else id


def _salt(user: str | None, wanted: str) -> str:
    """Where users are told apart, nobody learns by what is found in the cache how another one's prompt begins."""
    return wanted if user is None else f"{user}\n{wanted}"


def _label(user: str, text: str) -> str:
    """On one line, without anything that drives a terminal: the user within the key's, and the prompt's beginning."""
    words = " ".join([*([f"[{user}]"] if user else []), *text.split()])
    return "".join(character for character in words if character.isprintable())[:_LABEL]
