from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat

from llmosd.application.http import schema
from llmosd.application.http.schema import (
    ChatBody,
    CompletionBody,
    chat_body,
    completion_body,
    priority_of,
    user_of,
)
from llmosd.application.http.unimplemented import CHAT_UNIMPLEMENTED, COMPLETION_UNIMPLEMENTED
from llmosd.errors import InvalidRequest
from llmosd.types import Sampling

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> ChatBody:
    return chat_body(json.dumps(CHAT | fields).encode())


def completion(**fields: Any) -> CompletionBody:
    return completion_body(json.dumps(COMPLETION | fields).encode())


def refusal(call: Any, *args: Any) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        call(*args)
    return caught.value.param, caught.value.message


def test_every_field_of_openai_is_implemented_or_refused_by_name() -> None:
    for params, body, table in (
        (openai_chat.CompletionCreateParamsBase, ChatBody, CHAT_UNIMPLEMENTED),
        (openai_completion.CompletionCreateParamsBase, CompletionBody, COMPLETION_UNIMPLEMENTED),
    ):
        known = set(typing.get_type_hints(params, include_extras=True)) | {"stream"}
        assert known <= set(body.__struct_fields__) | set(table)
        assert not set(body.__struct_fields__) & set(table)


@pytest.mark.parametrize("name", CHAT_UNIMPLEMENTED)
def test_an_unimplemented_field_may_hold_its_default_and_nothing_else(name: str) -> None:
    for default in CHAT_UNIMPLEMENTED[name]:
        chat(**{name: default})
    for value in (1, "x", [1], {"a": 1}):
        assert refusal(lambda value=value: chat(**{name: value}))[0] == name


def test_a_default_is_compared_as_json_not_as_python() -> None:
    assert refusal(lambda: chat(store=0))[0] == "store"
    assert refusal(lambda: completion(best_of=True))[0] == "best_of"
    completion(best_of=1, echo=False, suffix=None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"priority": 20}, "priority"),
        ({"priority": -21}, "priority"),
        ({"wibble": None}, "wibble"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url",
        ),
        ({"messages": ["x"]}, "messages[0]"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], param: str) -> None:
    def use() -> None:
        body = chat(**fields)
        body.sampling()
        body.conversation()

    assert refusal(use)[0] == param


@pytest.mark.parametrize(
    ("raw", "param"),
    [(b"", None), (b"{", None), (b"[]", None), (b'"x"', None), (b"\xff", None), (b"{}", "model"), (b"NaN", None)],
)
def test_what_is_no_body_is_refused(raw: bytes, param: str | None) -> None:
    assert refusal(chat_body, raw)[0] == param


def test_nesting_is_bounded() -> None:
    assert "nested too deeply" in refusal(chat_body, b'{"x":' + b"[" * 10**5)[1]


def test_null_is_the_default_everywhere() -> None:
    optional = [f for f in ChatBody.__struct_fields__ if f not in ("model", "messages")]
    plain, nulls = chat(seed=1).sampling(), chat(**dict.fromkeys(optional))
    assert nulls.sampling() == Sampling(seed=nulls.sampling().seed) or plain == Sampling(seed=1)
    assert plain == Sampling(seed=1)


def test_every_sampling_field_arrives() -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.4,
        "seed": -5,
        "stop": ["x", "y"],
        "n": 3,
        "ignore_eos": True,
        "max_tokens": 9,
    }
    expected = Sampling(**{**fields, "stop": ("x", "y")})
    assert completion(**fields).sampling() == expected
    assert chat(**fields).sampling() == expected
    assert chat(max_completion_tokens=9).sampling().max_tokens == 9
    assert chat(logprobs=True).sampling().logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).sampling().logprobs == 20
    assert chat(logprobs=False).sampling().logprobs is None
    assert completion(logprobs=5).sampling().logprobs == 5
    assert completion(top_k=-1).sampling().top_k == 0
    assert completion(stop="x").sampling().stop == ("x",)


def test_defaults_differ_as_openais_do() -> None:
    assert chat().sampling().max_tokens is None
    assert completion().sampling().max_tokens == 16
    assert chat().sampling().temperature == 1.0


def test_a_seed_is_drawn_where_none_is_given() -> None:
    assert len({completion().sampling().seed for _ in range(20)}) == 20


def test_prompts_of_all_four_kinds() -> None:
    assert completion(prompt="a").prompts() == ["a"]
    assert completion(prompt=["a", "b"]).prompts() == ["a", "b"]
    assert completion(prompt=[1, 2]).prompts() == [[1, 2]]
    assert completion(prompt=[[1], [2, 3]]).prompts() == [[1], [2, 3]]
    assert refusal(completion(prompt=[1, "a"]).prompts)[0] == "prompt"
    assert refusal(completion(prompt=["a"] * 129).prompts)[0] == "prompt"
    assert refusal(lambda: completion(prompt=[]))[0] == "prompt"


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).conversation() == [{"role": "user", "content": "ab"}]


def test_an_answer_can_be_sent_back_as_the_client_dumps_it() -> None:
    dumped = {"role": "assistant", "content": "x", "refusal": None, "annotations": None, "audio": None}
    body = chat(messages=[{**dumped, "function_call": None, "tool_calls": None}])
    assert body.conversation() == [{"role": "assistant", "content": "x"}]


def test_stream_options_need_stream() -> None:
    assert chat().streaming() is None
    assert refusal(chat(stream_options={"include_usage": True}).streaming)[0] == "stream_options"
    options = chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False}).streaming()
    assert options is not None and options.include_usage
    wrong = chat(stream=True, stream_options={"include_obfuscation": True})
    assert refusal(wrong.streaming)[0] == "stream_options.include_obfuscation"


def test_a_users_name_cannot_drive_a_terminal() -> None:
    assert user_of(chat(user="Ann-Marie Ünal")) == "Ann-Marie Ünal"
    for user in ("a\x1b[2J", "a\nb", "x" * 257, "\u202e"):
        assert refusal(user_of, chat(user=user))[0] == "user"


def test_priority_body() -> None:
    assert priority_of(b'{"priority": -20}') == -20
    for raw in (b'{"priority": 20}', b'{"priority": 1.5}', b"{}", b'{"priority": null}'):
        assert refusal(priority_of, raw)[0] == "priority"
    assert refusal(priority_of, b'{"priority": 1, "nice": 2}')[0] == "nice"


TEXT = st.text("ab\x00\x1bé\ud800\U0001f600", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__, *CHAT_UNIMPLEMENTED}))


@given(st.dictionaries(NAMES, JSON, max_size=5), st.booleans())
def test_any_object_is_a_body_or_is_refused(fields: dict[str, Any], chatty: bool) -> None:
    raw = json.dumps((CHAT if chatty else COMPLETION) | fields).encode()
    try:
        if chatty:
            body = chat_body(raw)
            assert all(isinstance(message["content"], str) for message in body.conversation())
        else:
            text = completion_body(raw)
            assert len(text.prompts()) <= schema.MAX_PROMPTS
            body = text
        body.streaming()
        sampling = body.sampling()
    except InvalidRequest as error:
        assert error.message
    else:
        assert 0 <= sampling.temperature <= 2 and 1 <= sampling.n <= schema.MAX_CHOICES
        assert sampling.max_tokens is None or sampling.max_tokens >= 1


@given(st.binary(max_size=64))
def test_any_bytes_are_a_body_or_are_refused(raw: bytes) -> None:
    for parse in (chat_body, completion_body, priority_of):
        with pytest.raises(InvalidRequest):
            parse(raw)
