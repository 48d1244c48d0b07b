"""Text survives tokenisation, tokens' bytes add up to it, and the file's own control tokens are what they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import assume, given
from hypothesis import strategies as st

from llmosd.errors import InvalidRequest, ModelError
from llmosd.runtime.chat_template import ChatTemplate
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.tokenizer import Tokenizer, tokenizer_json, tokenizer_meta
from tests.runtime import tiny

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(model: InstalledModel) -> Tokenizer:
    return model.load_tokenizer()


@cache
def sayable(tokenizer: Tokenizer) -> frozenset[int]:
    """Bytes that have a token of their own."""
    tokens = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return frozenset(token[0] for token in tokens if len(token) == 1)


@given(text=TEXT | st.from_regex(r"(<\|im_start\|>|<\|im_end\|>| |\n|\d|é|𝔘|'s){0,12}", fullmatch=True))
def test_plain_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    """This vocabulary lacks 21 of the 256 bytes (rare controls, planes nobody uses): their text cannot be said."""
    assume(set(text.encode()) <= sayable(tokenizer))
    ids = tokenizer.encode(text, special=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert not tokenizer.eos_ids & set(ids)


def test_known_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos, tokenizer.eos_ids) == (1, {0, 2})
    assert tokenizer.encode("<|im_start|>user\n", special=True) == [1, 4093, 198]
    assert tokenizer.encode("The capital of France is", special=False) == [504, 3575, 282, 4649, 314]
    assert len(tokenizer.encode("2026", special=False)) == 4  # digits one by one
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.token_bytes(504) == b"The"
    assert tokenizer.token_bytes(3575) == b" capital"


def test_names_of_control_tokens_in_plain_text_stay_text(tokenizer: Tokenizer) -> None:
    assert 2 not in tokenizer.encode("<|im_end|>", special=False)
    assert tokenizer.encode("<|im_end|>", special=True) == [2]


def test_a_byte_that_is_no_utf8_decodes_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("𝔘", special=False)
    assert tokenizer.decode(ids[:-1]).endswith("�")
    assert tokenizer.decode(ids) == "𝔘"


def test_every_token_has_its_bytes(tokenizer: Tokenizer) -> None:
    alphabet = {tokenizer.token_bytes(token) for token in range(17, tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in b"\n azAZ09~"} <= alphabet
    assert b"" not in alphabet


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "hell 123", ["hell", " ", "1", "2", "3"]),
        ("llama-bpe", "hell", ["hell"]),
        ("smollm", "hello", ["hell", "o"]),
    ],
)
def test_tokenizers_by_the_name_of_their_splitting_rule(pre: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    source = GgufFile(tiny.write_tiny(tmp_path / "tiny.gguf", Kind.F32, pre=pre))
    small = Tokenizer(tokenizer_json(source.tokenizer), tokenizer_meta(source.tokenizer, source.geometry.eos))
    ids = small.encode(text, special=False)
    assert [small.decode([token]) for token in ids] == pieces
    assert small.encode(text, special=False, begin=True) == [tiny.BOS, *ids]
    assert small.eos_ids == {tiny.EOS}


def test_an_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    source = GgufFile(tiny.write_tiny(tmp_path / "tiny.gguf", Kind.F32, pre="klingon"))
    with pytest.raises(ModelError, match="klingon"):
        tokenizer_json(source.tokenizer)


def test_chat_template_of_the_model(model: InstalledModel) -> None:
    template = model.load_chat_template()
    assert template.render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ 7 * 7 }}"}]
    assert template.render(messages, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{{ 7 * 7 }}<|im_end|>\n"
    )


def test_a_template_refuses_messages_and_cannot_reach_out() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([])
    with pytest.raises(InvalidRequest):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render([])
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate("{% for %}")
    assert ChatTemplate("{{ bos_token }}|{{ eos_token }}", bos_token="<s>", eos_token="</s>").render([]) == "<s>|</s>"
