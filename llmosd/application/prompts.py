"""Texts and conversations into token ids, off the event loop where they are long."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence

from llmosd.runtime.chat_template import ChatTemplate
from llmosd.runtime.tokenizer import Tokenizer

_INLINE = 4096  # characters that tokenise in about a millisecond; more would hold up every stream
_MARK = re.compile("\ue000(\\d+)\ue001")

Conversation = Sequence[Mapping[str, str]]


class Prompts:
    """What the front end needs of a model's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self._template = template

    async def text(self, text: str) -> list[int]:
        """A raw prompt: names of control tokens in it are control tokens, so that a client can build its own chat."""
        return await _run(lambda: self.tokenizer.encode(text, special=True, begin=True), len(text))

    async def chat(self, messages: Conversation) -> list[int]:
        """A conversation through the model's template. Raises InvalidRequest where the template refuses it."""
        return await _run(lambda: self._chat(messages), sum(len(message["content"]) for message in messages))

    def _chat(self, messages: Conversation) -> list[int]:
        """Control tokens come from the template only. A message that names one (`<|im_end|>` …) means those
        characters: else its author could end the message and speak in another role."""
        ids = self.tokenizer.encode(self._template.render(messages), special=True)
        marked = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(messages)]
        pieces = _MARK.split(self._template.render(marked))
        frame = [self.tokenizer.encode(piece, special=True) for piece in pieces[::2]]
        if self._controls(ids) == sum(map(self._controls, frame)):
            return ids
        contents = [self.tokenizer.encode(messages[int(i)]["content"], special=False) for i in pieces[1::2]]
        return [token for pair in zip(frame, [*contents, []], strict=True) for part in pair for token in part]

    def _controls(self, ids: Sequence[int]) -> int:
        return sum(not self.tokenizer.token_bytes(token) for token in ids)


async def _run(encode: Callable[[], list[int]], size: int) -> list[int]:
    return encode() if size <= _INLINE else await asyncio.to_thread(encode)
