from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.system.accounts import Account
from llmosd.system.request import TRANSITIONS, IllegalTransition, Request
from llmosd.types import ENDED, QueuedTime, RequestSpec, Sampling, State


def make_request(prompt: int = 3, n: int = 1, *, arrived: int = 0, now: int = 0) -> Request:
    spec = RequestSpec("r", "m", list(range(prompt)), Sampling(n=n), arrived=arrived)
    return Request(spec, 0, 4, 0, now, Account(""))


def legal_walks() -> st.SearchStrategy[list[State]]:
    def walk(choices: list[int]) -> list[State]:
        states = [State.QUEUED]
        for choice in choices:
            if next_states := sorted(TRANSITIONS[states[-1]]):
                states.append(next_states[choice % len(next_states)])
        return states

    return st.lists(st.integers(0, 20), max_size=30).map(walk)


def test_every_pair_of_states_is_either_in_the_table_or_an_error() -> None:
    for old, new in product(State, State):
        request = make_request()
        request.state = old
        if new in TRANSITIONS[old]:
            assert request.enter(new, 1) is old
            assert request.state is new
        else:
            with pytest.raises(IllegalTransition, match=f"{old} → {new}"):
                request.enter(new, 1)
            assert request.state is old


def test_ended_states_are_final_and_all_others_can_be_cancelled_and_fail() -> None:
    for state in State:
        if state in ENDED:
            assert not TRANSITIONS[state]
        else:
            assert {State.CANCELLED, State.FAILED} <= TRANSITIONS[state]


def test_only_decode_finishes_and_nothing_skips_prefill_but_what_kept_its_pages() -> None:
    assert [old for old in State if State.FINISHED in TRANSITIONS[old]] == [State.DECODE]
    into_decode = {old for old in State if State.DECODE in TRANSITIONS[old]}
    assert into_decode == {State.PREFILL, State.SWAPPED, State.SUSPENDED}


@given(legal_walks(), st.lists(st.integers(0, 10**12), min_size=32, max_size=32), st.integers(0, 10**9))
def test_the_parts_sum_to_the_total_and_each_is_the_time_in_its_state(
    walk: list[State], gaps: list[int], before: int
) -> None:
    now = before
    request = make_request(arrived=0, now=now)
    spent = dict.fromkeys(State, 0)
    for (old, new), gap in zip(pairwise(walk), gaps, strict=False):
        now += gap
        spent[old] += gap
        request.enter(new, now)
    now += gaps[-1]
    if request.state not in ENDED:
        spent[request.state] += gaps[-1]
    else:
        now -= gaps[-1]
    times = request.times(now)
    assert times.total == now
    assert (times.queued, times.prefill) == (spent[State.QUEUED], spent[State.PREFILL])
    assert (times.decode, times.preempted) == (spent[State.DECODE], spent[State.PREEMPTED])
    assert (times.swapped, times.suspended) == (spent[State.SWAPPED], spent[State.SUSPENDED])
    assert (times.paused, times.rest) == (spent[State.PAUSED], before)
    assert times.queued_by.total == times.queued
    assert request.timeline[0] == ("queued", before) and request.timeline[-1][0] == request.state


def test_tokenisation_and_the_wait_for_a_step_under_way_are_told_apart() -> None:
    spec = RequestSpec("r", "m", [1], Sampling(), arrived=10, ready=35, tokenise=20)
    times = Request(spec, 0, 4, 0, 50, Account("")).times(57)
    assert (times.tokenise, times.rest, times.queued, times.total) == (20, 5, 22, 47)
    assert times.queued_by == QueuedTime(step=22)


@given(st.integers(1, 9), st.lists(st.integers(0, 99), max_size=9), st.integers(0, 18), st.integers(0, 18))
def test_history_is_a_slice_of_prompt_and_generated(prompt: int, tokens: list[int], start: int, end: int) -> None:
    sequence = make_request(prompt).sequences[0]
    sequence.tokens += tokens
    assert sequence.history(start, end) == [*range(prompt), *tokens][start:end]
    assert sequence.length == prompt + len(tokens)


def test_a_request_with_several_sequences_is_led_until_the_fork() -> None:
    request = make_request(prompt=5, n=3)
    leader, second, third = request.sequences
    request.state = State.PREFILL
    assert request.to_feed() == [leader]
    assert request.feed_end(leader) == 4
    request.forked = True
    leader.gained = 1
    assert request.to_feed() == [second, third]
    assert request.feed_end(second) == 5
    request.state = State.DECODE
    assert request.to_feed() == [leader, second, third]
