"""Many clients at once: nobody fails, nobody gets another's text, everything is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import psutil
import pytest
from started import MODEL, Daemon, eventually, started

SUBJECTS, PLACES = ("river", "engine", "winter", "falcon"), ("garden", "harbour")
PROMPTS = [f"The {subject} and the {place}" for subject in SUBJECTS for place in PLACES]
MIB = 1 << 20


async def stream_text(client: openai.AsyncOpenAI, prompt: str, tokens: int) -> str:
    stream: AsyncIterator[openai.types.Completion] = await client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


def connect(daemon: Daemon) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0)


@pytest.mark.timeout(300)
async def test_64_clients_get_the_texts_that_they_would_get_alone(home: Path) -> None:
    """In strict mode, where batching must not change a token, in a pool so small that requests are preempted."""
    flags = ("--strict", "--slots", "16", "--page-tokens", "16", "--pages", "16", "--context", "256")
    with started(home, *flags) as daemon:
        async with connect(daemon) as client:
            alone = [await stream_text(client, prompt, 34) for prompt in PROMPTS]
            assert len(set(alone)) == len(PROMPTS)
            together = await asyncio.gather(*(stream_text(client, prompt, 34) for prompt in PROMPTS * 8))
        assert together == alone * 8
        eventually(lambda: daemon.pages_used() == 0, "all pages are free")
        assert daemon.metric("vllm:num_preemptions_total") > 0, "the pool was to be too small"
        assert daemon.metric("vllm:request_success_total", finished_reason="length") == len(PROMPTS) * 9


@pytest.mark.timeout(300)
async def test_metrics_after_a_known_load_and_flat_memory_over_1000_requests(home: Path) -> None:
    with started(home, "--context", "512") as daemon:
        process, tokens = psutil.Process(daemon.process.pid), 2
        async with connect(daemon) as client:

            async def wave(requests: int) -> None:
                gate = asyncio.Semaphore(40)

                async def one(number: int) -> None:
                    prompt = [1, 1000 + number, 198]
                    async with gate:
                        await client.completions.create(
                            model=MODEL, prompt=prompt, max_tokens=tokens, extra_body={"ignore_eos": True}
                        )

                await asyncio.gather(*map(one, range(requests)))

            await wave(1000)  # by now the last 1,000 ended requests are kept
            before = process.memory_info().rss
            await wave(1000)
        assert process.memory_info().rss - before < 24 * MIB
        assert daemon.metric("vllm:generation_tokens_total") == 2000 * tokens
        assert daemon.metric("vllm:prompt_tokens_total") == 2000 * 3
        assert daemon.metric("vllm:request_success_total", finished_reason="length") == 2000
        assert daemon.metric("vllm:e2e_request_latency_seconds_count") == 2000
        assert daemon.metric("vllm:time_to_first_token_seconds_count") == 2000
        assert daemon.metric("vllm:inter_token_latency_seconds_count") == 2000 * (tokens - 1)
        assert (daemon.metric("vllm:num_requests_running"), daemon.metric("vllm:num_requests_waiting")) == (0, 0)
        assert daemon.metric("vllm:kv_cache_usage_perc") == 0
        assert daemon.metric("llmos_http_requests_total", route="/v1/completions", status="200") == 2000
