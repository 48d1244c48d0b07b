"""Incremental text equals whole text, cut where the first stop string is complete."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from llmosd.runtime.detokenizer import Detokenizer

# Few distinct bytes, so that stop strings occur and overlap; among them halves of characters and broken sequences.
PIECES = [
    b"a",
    b"b",
    b"ab",
    b"\xc3",
    b"\xa9",
    b"\xe2\x82",
    b"\xac",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xff",
    b"\x80",
    b" ",
    b"",
]
tokens = st.lists(st.sampled_from(PIECES), max_size=24)
stops = st.lists(st.text("ab é€😀\ufffd", min_size=1, max_size=5), max_size=4).map(tuple)


def emitted(data: list[bytes], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    detokenizer, texts = Detokenizer(stop), []
    for piece in data:
        text, stopped = detokenizer.push(piece)
        texts.append(text)
        if stopped:
            return texts, True
    return [*texts, detokenizer.flush()], False


def truncated(text: str, stop: tuple[str, ...]) -> str:
    """Character by character: the text before the first stop string to be complete, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(tokens, stops)
@example([b"ab", b"ab", b"ac"], ("abac",))
@example([b"a", b"b"], ("b", "ab"))
@example([b"a", b"\xf0\x9f"], ("\ufffd",))
def test_concatenation_is_the_whole_text_up_to_the_first_stop_string(data: list[bytes], stop: tuple[str, ...]) -> None:
    whole = b"".join(data).decode("utf-8", errors="replace")
    assert "".join(emitted(data, stop)[0]) == truncated(whole, stop)


@given(tokens)
def test_without_stop_strings_nothing_but_part_characters_is_held_back(data: list[bytes]) -> None:
    detokenizer, text = Detokenizer(()), ""
    for end, piece in enumerate(data, 1):
        text += detokenizer.push(piece)[0]
        whole = b"".join(data[:end]).decode("utf-8", errors="replace")
        assert whole.startswith(text)
        assert len(whole) - len(text) <= 1  # at most one unfinished character, which reads U+FFFD in the whole


def test_holds_back_only_the_longest_possible_start_of_a_stop_string() -> None:
    detokenizer = Detokenizer(("</s>", "END"))
    assert detokenizer.push(b"one <") == ("one ", False)
    assert detokenizer.push(b"b> </") == ("<b> ", False)
    assert detokenizer.push(b"E") == ("</", False)
    assert detokenizer.push(b"N") == ("", False)
    assert detokenizer.push(b"D and more") == ("", True)


def test_flush_gives_what_was_held_back() -> None:
    detokenizer = Detokenizer(("END",))
    assert detokenizer.push(b"the EN\xe2\x82") == ("the ", False)
    assert detokenizer.flush() == "EN\ufffd"
