"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.decode import read_body
from llmosd.application.http.edge import request_id
from llmosd.application.http.generation import Backing, Choice, Generation, UsageField, begin, streamed
from llmosd.application.http.reply import ok
from llmosd.application.http.schema import StreamOptions, completion_body
from llmosd.application.http.sse import TextEvents, sse
from llmosd.application.models import ServedModel
from llmosd.application.prompts import Prompts
from llmosd.errors import InvalidRequest
from llmosd.types import FinishReason, Output, TokenLogprob


class Logprobs(msgspec.Struct):
    """`text_offset`: where each token begins in the choice's text, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(msgspec.Struct):
    """Whole, or one chunk of a streamed one; OpenAI uses the same shape for both."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: UsageField = msgspec.UNSET


class CompletionsEndpoint:
    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def post(self, request: Request) -> Response:
        body = completion_body(await read_body(request))
        model = await self._backing.models.get(body.model)
        options, sampling, prompts = body.streaming(), body.sampling(), body.prompts()
        tokens = asyncio.gather(*(_tokens(model.prompts, prompt) for prompt in prompts))
        text = prompts[0] if isinstance(prompts[0], str) else ""
        generation = await begin(request, self._backing, model, body, sampling, tokens, text)
        answer = Answer(f"cmpl-{request_id(request)}", model, generation, options)
        if options is not None:
            return streamed(generation, options, answer.events, answer.usage)
        choices = await generation.choices(request)
        return ok(answer.whole(choices, sampling.logprobs is not None))


async def _tokens(prompts: Prompts, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return await prompts.text(prompt)
    size = prompts.tokenizer.vocab_size
    if wrong := next((token for token in prompt if not 0 <= token < size), None):
        raise InvalidRequest(f"token {wrong} is not in the vocabulary (0 … {size - 1})", param="prompt")
    return prompt


class Answer:
    """Outputs in the shape of this endpoint."""

    def __init__(self, id: str, model: ServedModel, generation: Generation, options: StreamOptions | None) -> None:
        self._id = id
        self._created = int(time.time())
        self._model = model.id
        self._token_text = model.prompts.tokenizer.token_text
        self._generation = generation
        self._options = options or StreamOptions()
        self._offsets: dict[int, int] = {}
        self._texts = TextEvents(lambda index, text: self._chunk([TextChoice(index, text)]))

    def whole(self, choices: list[Choice], logprobs: bool) -> Completion:
        made = [
            TextChoice(c.index, c.text, self._logprobs(c.logprobs, 0) if logprobs else None, c.finish) for c in choices
        ]
        return Completion(self._id, self._created, self._model, made, usage=self._generation.usage)

    def events(self, index: int, output: Output) -> bytes:
        """What is held back (part of a character or stop string) makes no event."""
        if not (output.finish or output.logprobs or self._options.continuous_usage_stats):
            return self._texts.event(index, output.text) if output.text else b""
        if not (output.text or output.finish or output.logprobs):
            return b""
        offset = self._offsets.get(index, 0)
        logprobs = self._logprobs(output.logprobs, offset) if output.logprobs else None
        self._offsets[index] = offset + sum(map(len, logprobs.tokens)) if logprobs else offset
        return sse(self._chunk([TextChoice(index, output.text, logprobs, output.finish)]))

    def usage(self) -> Completion:
        chunk = self._chunk([])
        chunk.usage = self._generation.usage
        return chunk

    def _chunk(self, choices: list[TextChoice]) -> Completion:
        usage = self._generation.running_usage(self._options)
        return Completion(self._id, self._created, self._model, choices, usage=usage)

    def _logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> Logprobs:
        made = Logprobs([], [], [], [])
        for entry in entries:
            text = self._token_text(entry.token)
            made.tokens.append(text)
            made.token_logprobs.append(entry.logprob)
            made.top_logprobs.append(self._by_text(entry))
            made.text_offset.append(offset)
            offset += len(text)
        return made

    def _by_text(self, entry: TokenLogprob) -> dict[str, float]:
        """Of tokens that read the same, the likeliest."""
        chances: dict[str, float] = {}
        for token, logprob in entry.top:
            chances.setdefault(self._token_text(token), logprob)
        return chances
