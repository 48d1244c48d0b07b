"""The official client against a started daemon with the real model."""

from __future__ import annotations

import openai
import pytest
from started import MODEL, Daemon, eventually

from llmosd.application.listing import RequestInfo
from llmosd.types import ENDED

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_answers_the_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 24


def test_a_stream_carries_the_same_text_and_its_usage(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_completion_continues_text_or_token_ids(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="One, two, three, four,", max_tokens=4, temperature=0)
    assert text.choices[0].text.strip().startswith("five")
    ids = client.completions.create(model=MODEL, prompt=[1, 4093, 198], max_tokens=4, extra_body={"ignore_eos": True})
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens) == (3, 4)


def test_logprobs_are_of_the_tokens_in_the_text(client: openai.OpenAI) -> None:
    asked = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    answer = client.chat.completions.create(**asked)
    choice = answer.choices[0]
    said = choice.logprobs.content
    assert len(said) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes or b"") for token in said).decode() == choice.message.content
    for token in said:
        best = max(token.top_logprobs, key=lambda top: top.logprob)
        assert token.logprob <= 0
        assert best.logprob == pytest.approx(token.logprob), "greedy takes the likeliest"


def test_two_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "My favourite colour is", "max_tokens": 12, "temperature": 1.5, "n": 2}
    first, second = (client.completions.create(**asked, seed=7) for _ in range(2))
    assert [choice.index for choice in first.choices] == [0, 1]
    assert first.choices[0].text != first.choices[1].text
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    other = client.completions.create(**asked, seed=8)
    assert [choice.text for choice in other.choices] != [choice.text for choice in first.choices]


def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI) -> None:
    prompt = "One, two, three, four,"
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=30, temperature=0, stop=["seven"])
    assert answer.choices[0].finish_reason == "stop"
    assert "six" in answer.choices[0].text
    assert "seven" not in answer.choices[0].text


def test_errors_name_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-0", prompt="x")
    assert "gpt-0" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt=[1] * 9000)
    assert long.value.code == "context_length_exceeded"
    assert "9000" in long.value.message and "8192" in long.value.message


def test_leaving_a_stream_cancels_its_request(client: openai.OpenAI, daemon: Daemon) -> None:
    headers = {"X-Request-Id": "left-early"}
    body = {"ignore_eos": True}
    stream = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=4000, stream=True, extra_body=body, extra_headers=headers
    )
    next(iter(stream))
    stream.close()
    with daemon.client() as own:
        ended = eventually(lambda: _ended(own.request("left-early")), "the request ends")
    assert ended.state == "cancelled"
    assert ended.completion_tokens < 4000


def _ended(request: RequestInfo) -> RequestInfo | None:
    return request if request.state in ENDED else None
