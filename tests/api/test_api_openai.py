"""What the official client sees."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from api_house import MODEL, House, open_house

HI: list[Any] = [{"role": "user", "content": "hi"}]
CHAT_FRAME = len("user\nhi" + "\n" + "assistant\n") + 3  # bytes of the template and its control tokens


async def test_a_chat(house: House) -> None:
    answer = await house.ai.chat.completions.create(model=MODEL, messages=HI, max_tokens=5, user="ann")
    assert answer.choices[0].message.content == "abcde"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (CHAT_FRAME, 5)
    assert answer.usage.total_tokens == CHAT_FRAME + 5
    (view,) = house.recorded
    assert answer.id == f"chatcmpl-{view.id}" and view.user == "ann" and view.label == ""


async def test_a_chat_runs_to_what_fits() -> None:
    async with open_house() as house:
        answer = await house.ai.chat.completions.create(model=MODEL, messages=HI)
        assert answer.usage is not None and answer.usage.total_tokens == 512
        assert answer.choices[0].finish_reason == "length"


async def test_a_streamed_chat() -> None:
    async with open_house(lambda start: 4) as house:
        stream = await house.ai.chat.completions.create(
            model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abcd"
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * 4]
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * 4, "stop"]
        assert all(chunk.usage is None for chunk in chunks)
        assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 4
        assert len({chunk.id for chunk in [*chunks, last]}) == 1


async def test_the_stream_helper() -> None:
    async with (
        open_house(lambda start: 3) as house,
        house.ai.chat.completions.stream(model=MODEL, messages=HI) as stream,
    ):
        texts = [event.delta async for event in stream if event.type == "content.delta"]
        assert "".join(texts) == "abc"
        assert (await stream.get_final_completion()).choices[0].message.content == "abc"


async def test_usage_says_what_of_the_prompt_was_known() -> None:
    async with open_house(prefixes=True) as house:
        long = {"model": MODEL, "prompt": "a text of more than one page", "max_tokens": 1}
        known = [
            answer.usage.prompt_tokens_details.cached_tokens
            for answer in [
                await house.ai.completions.create(**long),
                await house.ai.completions.create(**long),
                await house.ai.completions.create(**long, extra_body={"cache_salt": "mine"}),
            ]
        ]
        assert known == [0, len(long["prompt"]) - 1, 0]


async def test_choices(house: House) -> None:
    answer = await house.ai.chat.completions.create(model=MODEL, messages=HI, max_tokens=3, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "abc"), (1, "bcd"), (2, "cde")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (CHAT_FRAME, 9)


async def test_streamed_choices(house: House) -> None:
    stream = await house.ai.chat.completions.create(model=MODEL, messages=HI, max_tokens=3, n=2, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "abc", 1: "bcd"}


async def test_chat_logprobs(house: House) -> None:
    answer = await house.ai.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=2, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [(c.token, c.bytes, c.logprob) for c in logprobs.content] == [("a", [97], -0.5), ("b", [98], -0.5)]
    assert [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs] == [("a", -0.5), ("a", -1.5)]


async def test_streamed_chat_logprobs(house: House) -> None:
    stream = await house.ai.chat.completions.create(model=MODEL, messages=HI, max_tokens=2, logprobs=True, stream=True)
    tokens = [c.token async for chunk in stream if chunk.choices[0].logprobs for c in chunk.choices[0].logprobs.content]
    assert tokens == ["a", "b"]


async def test_a_completion(house: House) -> None:
    answer = await house.ai.completions.create(model=MODEL, prompt="hello", max_tokens=3, logprobs=1)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.choices[0].text == "abc" and answer.choices[0].finish_reason == "length"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c"] and logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 3 and logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]


async def test_a_completion_has_sixteen_tokens_by_default(house: House) -> None:
    answer = await house.ai.completions.create(model=MODEL, prompt="hello")
    assert answer.choices[0].text == "abcdefghijklmnop"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [b"ab"]),
        ([97, 98], [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ],
)
async def test_prompts_of_all_kinds(house: House, prompt: Any, prompts: list[bytes]) -> None:
    answer = await house.ai.completions.create(model=MODEL, prompt=prompt, max_tokens=2, n=2)
    assert [choice.index for choice in answer.choices] == list(range(2 * len(prompts)))
    assert [choice.text for choice in answer.choices] == ["ab", "bc"] * len(prompts)
    assert answer.usage is not None and answer.usage.prompt_tokens == sum(map(len, prompts))
    assert sorted({bytes(start.prompt) for start in house.executor.starts()}) == prompts


async def test_streamed_prompts(house: House) -> None:
    stream = await house.ai.completions.create(
        model=MODEL, prompt=["x", "yy"], max_tokens=3, n=2, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["abc", "bcd"] * 2
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 12)


async def test_sampling_reaches_the_executor(house: House) -> None:
    await house.ai.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=2,
        temperature=0.25,
        seed=7,
        stop=["END"],
        extra_body={"top_k": 3, "min_p": 0.5, "ignore_eos": True, "priority": -3},
    )
    (start,) = house.executor.starts()
    sampling = start.sampling
    assert (sampling.temperature, sampling.seed, sampling.stop) == (0.25, 7, ("END",))
    assert (sampling.top_k, sampling.min_p, sampling.ignore_eos) == (3, 0.5, True)
    assert house.recorded[0].nice == -3


async def test_models(house: House) -> None:
    models = await house.ai.models.list()
    assert [model.id for model in models.data] == [MODEL]
    assert (await house.ai.models.retrieve(MODEL)).owned_by == "llmos"
    with pytest.raises(openai.NotFoundError) as caught:
        await house.ai.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


async def test_errors_carry_code_and_parameter(house: House) -> None:
    create = house.ai.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="gpt-9", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await create(model=MODEL, messages=HI, temperature=3)
    assert (wrong.value.code, wrong.value.param) == ("invalid_request", "temperature")
    with pytest.raises(openai.BadRequestError) as unimplemented:
        await create(model=MODEL, messages=HI, tools=[{"type": "function", "function": {"name": "f"}}])
    assert unimplemented.value.param == "tools" and "not implemented" in str(unimplemented.value)
    with pytest.raises(openai.BadRequestError) as long:
        await house.ai.completions.create(model=MODEL, prompt="x" * 600)
    assert long.value.code == "context_length_exceeded"
    assert "600" in str(long.value) and "512" in str(long.value)


async def test_a_failed_step_fails_its_own_request_only(house: House) -> None:
    house.executor.poisoned = "poison"  # and the client does not repeat it, as it would any other 500
    with pytest.raises(openai.InternalServerError) as caught:
        await house.ai.completions.create(model=MODEL, prompt=["fine", "poison"], max_tokens=4)
    assert caught.value.code == "step_failed"
    answer = await house.ai.completions.create(model=MODEL, prompt="fine", max_tokens=4)
    assert answer.choices[0].text == "abcd"
    assert house.service.stats is not None and house.service.stats.failed == 1
