"""What the table lists, as a list and as a tree, and which requests a key on a line means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_top.actions import ECHO_S, Nices, kill, suspend
from llmos_top.filter import Filter
from llmos_top.items import View, items_of
from llmosd.types import State
from llmosd.wire import CommandBody, RequestRow
from tests.tui.frames import row

names = st.sampled_from(["", "ada", "bob"])
some_rows = st.lists(st.tuples(names, st.sampled_from(["", "chat-1", "chat-2"]), st.sampled_from(State))).map(
    lambda drawn: [row(n, user=u, session=s or row(n).id, state=state) for n, (u, s, state) in enumerate(drawn)]
)
filters = st.sampled_from(["", "user=ada", "state=decode", "session=chat-1 user=bob", "cmpl-000", "user=ada cmpl-0001"])


def matched(rows: list[RequestRow], command: CommandBody) -> set[str]:
    """The ids that the daemon takes a command to be about."""
    if command.ids:
        return set(command.ids)
    fields = ("user", "session", "state", "model", "service_class")
    return {r.id for r in rows if all(getattr(command, f) in (None, getattr(r, f)) for f in fields)}


@given(some_rows, filters, st.booleans())
def test_a_command_on_a_line_is_about_what_the_line_shows(rows: list[RequestRow], text: str, tree: bool) -> None:
    items = items_of(rows, View(filter=Filter.parse(text), tree=tree))
    leaves = [item.key for item in items if not item.is_branch]
    assert set(leaves) == {r.id for r in rows if Filter.parse(text).matches(r)} and len(leaves) == len(set(leaves))
    for item in items:
        fields: dict[str, Any] = {"service_class" if k == "class" else k: v for k, v in item.selects.items()}
        command = CommandBody(command="kill", **{**fields, "ids": tuple(fields.get("ids", ()))})
        assert matched(rows, command) == {r.id for r in item.members}
        assert item.selects and item.members and tree >= item.is_branch


@given(some_rows, filters)
def test_a_branch_sums_what_is_below_it(rows: list[RequestRow], text: str) -> None:
    items = items_of(rows, View(filter=Filter.parse(text), tree=True))
    for place, item in enumerate(items):
        below = []
        for other in items[place + 1 :]:
            if other.depth <= item.depth:
                break
            below.append(other)
        leaves = [other for other in below if not other.is_branch]
        if item.is_branch:
            assert {leaf.key for leaf in leaves} == {r.id for r in item.members}
            assert item.row.completion_tokens == sum(leaf.row.completion_tokens for leaf in leaves)
            assert item.row.pages == sum(leaf.row.pages for leaf in leaves)


@pytest.mark.parametrize(("text", "words"), [("size=1", "no field size"), ("state=gone", "no state gone")])
def test_a_filter_that_cannot_be_says_what_there_is(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Filter.parse(text)


@given(filters)
def test_a_filter_reads_back_as_it_is_written(text: str) -> None:
    assert Filter.parse(str(Filter.parse(text))) == Filter.parse(text)


def test_a_word_is_looked_for_in_id_user_session_and_text() -> None:
    one = row(1, user="Ada", session="chat-7", label="Why is the sky blue?")
    for word in (one.id[3:9], "ada", "CHAT", "sky blue"):
        assert Filter.parse(word).matches(one)
    assert not Filter.parse("red").matches(one)


def test_nice_adds_up_until_a_frame_must_show_it() -> None:
    (item,) = items_of([row(1, nice=3)], View())
    nices = Nices()
    asked = [nices.change(item, 1, now).fields["nice"] for now in (0.0, 1.0, 2.0, 2.0 + ECHO_S)]
    assert asked == [4, 5, 6, 4]
    assert [nices.change(item, -100, 9.0).fields["nice"], nices.change(item, 100, 9.1).fields["nice"]] == [-20, 19]


def test_a_user_is_resumed_only_when_all_of_theirs_stand_still() -> None:
    def states(*all: str) -> str:
        rows = [row(n, user="ada", state=state) for n, state in enumerate(all)]
        user = items_of(rows, View(tree=True))[1]
        assert kill(user).fields == {"user": "ada"}
        return suspend(user).command

    assert states("suspended", "suspended") == "resume"
    assert states("suspended", "decode") == "suspend"
