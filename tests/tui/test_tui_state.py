"""The reducer and what it makes of silence, last wills, retained and stored Frames."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmos_top.liveness import Life, liveness
from llmos_top.messages import (
    BrokerDown,
    BrokerUp,
    EventArrived,
    FrameArrived,
    FrameStored,
    Message,
    StatusArrived,
    Unreadable,
)
from llmos_top.state import EVENTS, HISTORY, Source, State, reduce
from tests.tui.frames import NODE, event, frame, status


def fold(*messages: tuple[float, Message], start: State | None = None) -> State:
    state = start or State()
    for now, message in messages:
        state = reduce(state, message, now)
    return state


def fresh(seq: int, **changes: object) -> FrameArrived:
    return FrameArrived(frame(seq, **changes), b"{}", retained=False)


def retained(seq: int, **changes: object) -> FrameArrived:
    return FrameArrived(frame(seq, **changes), b"{}", retained=True)


def life(state: State, now: float) -> Life:
    return liveness(state, now).life


UP = (100.0, BrokerUp())
ONLINE = (100.1, StatusArrived(status()))


def test_a_fresh_frame_is_live_then_stale_then_the_daemon_is_down() -> None:
    state = fold(UP, ONLINE, (101.0, fresh(1)))
    assert [life(state, at) for at in (101.5, 102.9, 103.0, 110.9, 111.0)] == [
        Life.LIVE, Life.LIVE, Life.STALE, Life.STALE, Life.DAEMON_DOWN,
    ]  # fmt: skip
    assert liveness(state, 104.0).age_s == 3.0


def test_a_retained_frame_is_history_until_a_fresh_one_comes() -> None:
    state = fold(UP, ONLINE, (100.2, retained(7)))
    assert state.frame is not None and state.frame.seq == 7
    assert [life(state, at) for at in (100.3, 102.5, 110.5)] == [Life.CONNECTING, Life.STALE, Life.DAEMON_DOWN]
    assert life(fold((101.0, fresh(8)), start=state), 101.1) is Life.LIVE


def test_the_last_will_is_believed_at_once() -> None:
    state = fold(UP, ONLINE, (101.0, fresh(1)), (101.2, StatusArrived(status("offline"))))
    assert life(state, 101.3) is Life.DAEMON_DOWN


def test_a_fresh_frame_outweighs_a_last_will_that_came_late() -> None:
    state = fold(UP, (101.0, StatusArrived(status("offline"))), (101.5, fresh(1)))
    assert life(state, 101.6) is Life.LIVE


def test_nothing_retained_at_all_means_that_no_daemon_is_there() -> None:
    state = fold(UP)
    assert [life(state, at) for at in (101.0, 102.5)] == [Life.CONNECTING, Life.DAEMON_DOWN]


def test_a_broker_that_refuses_says_when_it_is_asked_again() -> None:
    state = fold((100.0, BrokerDown("connection refused", 4.0)))
    live = liveness(state, 101.0)
    assert (live.life, live.retry_in_s, live.actionable) == (Life.BROKER_DOWN, 3.0, False)


def test_after_a_reconnect_frames_get_time_to_come() -> None:
    state = fold(UP, (101.0, fresh(1)), (102.0, BrokerDown("gone", 1.0)), (130.0, BrokerUp()))
    assert [life(state, at) for at in (131.0, 133.0, 141.0)] == [Life.CONNECTING, Life.STALE, Life.DAEMON_DOWN]


def test_a_broker_that_went_with_its_daemon_leaves_the_daemon_to_blame() -> None:
    state = fold(UP, (101.0, fresh(1)), (102.0, StatusArrived(status("offline"))), (107.0, BrokerDown("refused", 1.0)))
    assert life(state, 108.0) is Life.DAEMON_DOWN


def test_the_database_stands_in_while_the_broker_is_down() -> None:
    down = fold(UP, (101.0, fresh(1)), (102.0, BrokerDown("gone", 4.0)))
    state = fold((103.0, FrameStored(frame(3), b"{}", age_s=0.5)), start=down)
    assert (life(state, 103.2), state.source) == (Life.VIA_DB, Source.DATABASE)
    assert liveness(state, 103.2).actionable
    assert life(state, 120.0) is Life.BROKER_DOWN


def test_a_stored_frame_that_is_not_newer_changes_nothing() -> None:
    state = fold(UP, (101.0, fresh(5)), (102.0, BrokerDown("gone", 4.0)))
    assert fold((103.0, FrameStored(frame(5), b"{}", 2.0)), start=state) == state


def test_missing_seconds_leave_a_gap_in_graphs() -> None:
    state = fold(UP, (101.0, fresh(1)), (102.0, fresh(2)), (105.0, fresh(5)))
    assert state.series(lambda f: f.seq) == [1, 2, None, None, 5]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_history_is_bounded_whatever_the_gaps(steps: list[int]) -> None:
    state, seq = State(), 0
    for step in steps:
        seq += step
        state = reduce(state, fresh(seq), float(seq))
    assert len(state.history) <= HISTORY
    assert state.history[-1] is not None and state.history[-1].seq == seq
    assert all(f is None or f.requests == () for f in state.history)


def test_events_are_bounded_and_of_the_shown_node() -> None:
    state = fold(UP, (101.0, fresh(1)))
    for seq in range(2 * EVENTS):
        state = reduce(state, EventArrived(event(seq)), 102.0)
    state = reduce(state, EventArrived(replace(event(999), node="other")), 103.0)
    assert [e.seq for e in state.events] == list(range(EVENTS, 2 * EVENTS))


def test_the_first_live_node_takes_over_from_one_that_is_only_remembered() -> None:
    state = fold(UP, (100.1, retained(9, node="ghost")), (101.0, fresh(1)))
    assert (state.node, state.other_nodes) == (NODE, frozenset({"ghost"}))
    assert life(state, 101.1) is Life.LIVE


def test_a_node_that_was_asked_for_stays() -> None:
    state = fold(UP, (101.0, fresh(1)), start=State(node="mine", pinned=True))
    assert (state.node, state.frame, state.other_nodes) == ("mine", None, frozenset({NODE}))


def test_a_second_live_node_is_named_but_does_not_take_over() -> None:
    state = fold(UP, (101.0, fresh(1)), (101.1, fresh(1, node="second")), (101.2, fresh(1, node="second")))
    assert state.frame is not None
    assert (state.frame.node, state.other_nodes) == (NODE, frozenset({"second"}))


def test_an_unreadable_message_is_remembered_until_a_readable_frame() -> None:
    state = fold(UP, (101.0, Unreadable("what?")))
    assert state.unreadable == "what?"
    assert fold((102.0, fresh(1)), start=state).unreadable == ""


messages = st.one_of(
    st.just(BrokerUp()),
    st.builds(BrokerDown, st.just("gone"), st.floats(0, 30)),
    st.builds(lambda seq, kept: FrameArrived(frame(seq), b"{}", kept), st.integers(0, 50), st.booleans()),
    st.builds(lambda seq, age: FrameStored(frame(seq), b"{}", age), st.integers(0, 50), st.floats(0, 100)),
    st.builds(lambda word: StatusArrived(status(word)), st.sampled_from(["online", "draining", "offline"])),
    st.just(Unreadable("?")),
)


@given(st.lists(st.tuples(st.floats(0, 5), messages), max_size=30), st.floats(0, 60))
def test_live_is_only_said_of_a_recent_frame_over_a_connected_broker(
    script: list[tuple[float, Message]], later: float
) -> None:
    state, now, newest = State(), 0.0, None
    for step, message in script:
        now += step
        state = reduce(state, message, now)
        if isinstance(message, FrameArrived) and not message.retained:
            newest = now
        elif isinstance(message, FrameStored):
            newest = max(newest or 0.0, now - message.age_s)
    live = liveness(state, now + later)
    if live.life is Life.LIVE:
        assert newest is not None and now + later - newest < 2.0
        assert state.frame is not None
    assert live.age_s is None or live.age_s >= 0
    assert live.retry_in_s is None or live.retry_in_s >= 0
    assert (live.life is Life.BROKER_DOWN) <= (state.broker == "down")
