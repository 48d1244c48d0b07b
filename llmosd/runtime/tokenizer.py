"""Text to tokens and back, built from a GGUF file's own metadata.

Byte-level BPE of the GPT-2 kind: every token is a string of bytes written in a printable alphabet of 256
characters. Which pieces of text the merges may not cross is named in the file; only names whose splitting rule is
known exactly are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from tokenizers import AddedToken, Regex, models, pre_tokenizers
from tokenizers import Tokenizer as _Backend

from llmosd.errors import ModelError
from llmosd.runtime.gguf_reader import CONTROL_TOKEN, TokenizerFacts

USER_DEFINED_TOKEN = 4

# Llama 3's published splitting rule: contractions, words, up to three digits, punctuation, line ends, blanks.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerMeta(msgspec.Struct, frozen=True):
    """What stands beside tokenizer.json: ids that the merges do not know of, and the names a chat template uses."""

    control: tuple[int, ...]
    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool
    bos_text: str
    eos_text: str


class Tokenizer:
    """Immutable after loading; safe to share between threads."""

    def __init__(self, backend_json: str, meta: TokenizerMeta) -> None:
        self._with_special = _Backend.from_str(backend_json)
        self._plain = _Backend.from_str(backend_json)
        self._plain.encode_special_tokens = True
        self.vocab_size = self._plain.get_vocab_size()
        self.bos = meta.bos
        self.eos_ids = frozenset(meta.eos)
        self.add_bos = meta.add_bos
        self._bytes = _all_token_bytes(self._plain, frozenset(meta.control))
        self._texts = [data.decode("utf-8", errors="replace") for data in self._bytes]

    def encode(self, text: str, special: bool, begin: bool = False) -> list[int]:
        """Token ids of `text`. With `special`, names of control tokens in it become those tokens; else plain text.

        `begin` puts the beginning-of-sequence token in front if the model wants one (plain prompts; a chat
        template writes its own).
        """
        backend = self._with_special if special else self._plain
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if begin and self.add_bos and self.bos is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; control tokens are silent, a broken UTF-8 sequence reads U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Exact bytes of one token; empty for a control token."""
        return self._bytes[token]

    def token_text(self, token: int) -> str:
        """Text of one token alone; bytes that are no whole characters read U+FFFD."""
        return self._texts[token]


def tokenizer_json(facts: TokenizerFacts) -> str:
    """The file's tokenizer in the `tokenizers` library's format. Raises ModelError for a kind it cannot do exactly."""
    if facts.model != "gpt2":
        raise ModelError(f"tokenizer model {facts.model!r} is not supported (only byte-level BPE, 'gpt2', is)")
    vocabulary = {token: index for index, token in enumerate(facts.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in facts.merges)]
    try:
        backend = _Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=facts.pre in _LLAMA3_NAMES))
    except Exception as error:  # the library has no narrower one
        raise ModelError(f"the file's tokenizer is damaged: {error}") from error
    backend.pre_tokenizer = _pre_tokenizer(facts.pre)
    backend.add_tokens([_added(token, kind) for token, kind in _added_tokens(facts)])
    return str(backend.to_str())


def tokenizer_meta(facts: TokenizerFacts, eos: tuple[int, ...]) -> TokenizerMeta:
    return TokenizerMeta(
        control=tuple(index for index, kind in enumerate(facts.kinds) if kind == CONTROL_TOKEN),
        bos=facts.bos,
        eos=eos,
        add_bos=facts.add_bos,
        bos_text="" if facts.bos is None else facts.tokens[facts.bos],
        eos_text="" if facts.eos is None else facts.tokens[facts.eos],
    )


_LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
_GPT2_NAMES = frozenset({"gpt-2", "gpt2", "olmo", "phi-2"})
_DIGIT_NAMES = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name in _DIGIT_NAMES:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _LLAMA3_NAMES:
        split = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = ", ".join(sorted(_DIGIT_NAMES | _GPT2_NAMES | _LLAMA3_NAMES))
    raise ModelError(f"pre-tokenizer {name!r} is not supported (known: {known})")


def _added_tokens(facts: TokenizerFacts) -> list[tuple[str, int]]:
    pairs = zip(facts.tokens, facts.kinds, strict=True)
    return [(token, kind) for token, kind in pairs if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)]


def _added(token: str, kind: int) -> AddedToken:
    return AddedToken(token, special=kind == CONTROL_TOKEN, normalized=False)


def _all_token_bytes(backend: _Backend, control: frozenset[int]) -> list[bytes]:
    alphabet = _byte_of_character()
    literal = {index for index, token in backend.get_added_tokens_decoder().items() if not token.special}
    table = []
    for index in range(backend.get_vocab_size()):
        token = backend.id_to_token(index) or ""
        if index in control:
            table.append(b"")
        elif index in literal:
            table.append(token.encode())
        else:
            table.append(bytes(alphabet[character] for character in token))
    return table


def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
