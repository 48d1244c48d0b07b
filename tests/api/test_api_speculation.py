"""What clients and metrics are told when a step brings several tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmosd.system.speculation import Speculation
from tests.api.api_house import MODEL, House, open_house

PROMPT = "abcdefghijklmnopqrstuvwxyz"  # the answer spells the alphabet
ANSWER = PROMPT[:20]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house(speculation=Speculation()) as house:
        yield house


async def test_streamed_chunks_of_several_tokens_add_up(house: House) -> None:
    stream = await house.ai.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, logprobs=1, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert len(chunks) < 15
    assert last.usage.completion_tokens == 20
    parts = [chunk.choices[0] for chunk in chunks]
    assert "".join(part.text for part in parts) == ANSWER
    assert [part.logprobs.tokens for part in parts] == [list(part.text) for part in parts]
    assert [offset for part in parts for offset in part.logprobs.text_offset] == list(range(20))


async def test_streamed_chat_has_a_log_probability_for_each_token(house: House) -> None:
    stream = await house.ai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": PROMPT}], max_tokens=20, logprobs=True, stream=True
    )
    parts = [chunk.choices[0] async for chunk in stream]
    told = [part for part in parts if part.delta.content]
    assert len(told) < 15
    assert "".join(part.delta.content for part in told) == ANSWER
    assert [entry.token for part in told for entry in part.logprobs.content] == list(ANSWER)


async def test_metrics_count_tokens_not_steps(house: House) -> None:
    await house.ai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20)
    accepted = house.value("llmos_speculation_accepted_tokens_total")
    assert 0 < accepted <= house.value("llmos_speculation_drafted_tokens_total")
    assert house.value("vllm:generation_tokens_total") == 20
    assert house.value("vllm:inter_token_latency_seconds_count") == 19
    gaps = house.value("vllm:inter_token_latency_seconds_sum")
    assert gaps == pytest.approx(house.value("vllm:request_decode_time_seconds_sum"))
    assert house.value("vllm:iteration_tokens_total_sum") == len(PROMPT) + 19
    steps = [batch.step for batch in house.batches if batch.step]
    assert sum(step.accepted for step in steps) == accepted
    assert sum(step.decode_tokens for step in steps) + accepted == 19
