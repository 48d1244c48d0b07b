"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmosd.application.http.decode import read_body
from llmosd.application.http.edge import request_id
from llmosd.application.http.generation import (
    Backing,
    Choice,
    Generation,
    Usage,
    UsageField,
    begin,
    streamed,
)
from llmosd.application.http.reply import ok
from llmosd.application.http.schema import StreamOptions, chat_body
from llmosd.application.http.sse import TextEvents, sse
from llmosd.application.models import ServedModel
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.types import FinishReason, Output, TokenLogprob


class TokenChance(msgspec.Struct):
    """`bytes` is exact where `token` is not: a token may hold part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenChances(TokenChance):
    top_logprobs: list[TokenChance]


class Logprobs(msgspec.Struct):
    content: list[TokenChances]
    refusal: None = None


class Message(msgspec.Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: UsageField = msgspec.UNSET


class ChatEndpoint:
    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def post(self, request: Request) -> Response:
        body = chat_body(await read_body(request))
        model = await self._backing.models.get(body.model)
        options, sampling, conversation = body.streaming(), body.sampling(), body.conversation()
        tokens = asyncio.gather(model.prompts.chat(conversation))
        generation = await begin(request, self._backing, model, body, sampling, tokens, conversation[-1]["content"])
        answer = Answer(f"chatcmpl-{request_id(request)}", model, sampling.logprobs is not None)
        if options is not None:
            chunks = Chunks(answer, generation, options)
            return streamed(generation, options, chunks.events, chunks.usage)
        choices = await generation.choices(request)
        return ok(ChatCompletion(answer.id, answer.created, answer.model, answer.choices(choices), generation.usage))


class Answer:
    """What a whole answer and a streamed one have in common."""

    def __init__(self, id: str, model: ServedModel, logprobs: bool) -> None:
        self.id = id
        self.created = int(time.time())
        self.model = model.id
        self._logprobs = logprobs
        self._tokenizer = model.prompts.tokenizer

    def choices(self, choices: list[Choice]) -> list[ChatChoice]:
        return [ChatChoice(c.index, Message(c.text), self.logprobs(c.logprobs), c.finish) for c in choices]

    def logprobs(self, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> Logprobs | None:
        return Logprobs([chances(entry, self._tokenizer) for entry in entries]) if self._logprobs else None


class Chunks:
    """Outputs as the chunks of a streamed answer."""

    def __init__(self, answer: Answer, generation: Generation, options: StreamOptions) -> None:
        self._answer = answer
        self._generation = generation
        self._options = options
        self._begun: set[int] = set()
        self._texts = TextEvents(lambda index, text: self._chunk([ChunkChoice(index, Delta(content=text))]))

    def events(self, index: int, output: Output) -> bytes:
        """A choice opens with its role; what is held back (part of a character or stop string) makes no event."""
        if index in self._begun:
            return self._event(index, output)
        self._begun.add(index)
        return sse(self._chunk([ChunkChoice(index, Delta("assistant", ""))])) + self._event(index, output)

    def _event(self, index: int, output: Output) -> bytes:
        if not (output.finish or output.logprobs or self._options.continuous_usage_stats):
            return self._texts.event(index, output.text) if output.text else b""
        if not (output.text or output.finish or output.logprobs):
            return b""
        logprobs = self._answer.logprobs(output.logprobs) if output.logprobs else None
        return sse(self._chunk([ChunkChoice(index, Delta(content=output.text or None), logprobs, output.finish)]))

    def usage(self) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = self._generation.usage
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        usage = self._generation.running_usage(self._options)
        return ChatChunk(self._answer.id, self._answer.created, self._answer.model, choices, usage=usage)


def chances(entry: TokenLogprob, tokenizer: Tokenizer) -> TokenChances:
    top = [TokenChance(*_spelled(token, tokenizer, logprob)) for token, logprob in entry.top]
    return TokenChances(*_spelled(entry.token, tokenizer, entry.logprob), top)


def _spelled(token: int, tokenizer: Tokenizer, logprob: float) -> tuple[str, float, list[int] | None]:
    return tokenizer.token_text(token), logprob, list(tokenizer.token_bytes(token)) or None
