"""A request's latency explained: the same from the daemon and from the database, exact, and within 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.application import query
from llmosd.application.cli import main
from llmosd.application.cli.explain import BAR, bar, intervals
from llmosd.application.explain import PHASES, Latency, span
from llmosd.application.store import Store
from llmosd.errors import InvalidRequest, NotFound
from llmosd.types import Ended, QueuedTime, RequestView, State, TimeSplit, WaitReason
from tests.telemetry.examples import MILLISECOND, finished, view

MS = MILLISECOND


def waited(id: str = "r1", **changes: object) -> RequestView:
    """It was tokenised in 2 ms, waited 600 for slots and 100 for the policy, and was preempted once."""
    times = TimeSplit(
        queued=700 * MS,
        prefill=100 * MS,
        decode=150 * MS,
        preempted=40 * MS,
        other=12 * MS,
        queued_by=QueuedTime(slots=600 * MS, policy=100 * MS),
        tokenise=2 * MS,
        swapped=7 * MS,
    )
    moments = {"queued": 5, "prefill": 705, "decode": 755, "preempted": 805, "finished": 1002}
    timeline = tuple((state, at * MS) for state, at in moments.items())
    return finished(id, times=times, timeline=timeline, preemptions=1, **changes)


def test_the_parts_sum_and_the_largest_is_named_with_what_would_shorten_it() -> None:
    latency = Latency.of(waited())
    assert sum(map(latency.phase, PHASES)) == latency.total_ns == 1002 * MS
    assert latency.queued_by.total == latency.queued_ns
    assert (latency.rest_ns, latency.cause) == (3 * MS, "queued for slots")
    assert latency.advice == (
        "600 ms of 1.00 s (60 %) went into waiting for slots. To shorten it: raise --slots, or send less at once."
    )


@pytest.mark.parametrize("cause", [*PHASES[:1], *PHASES[2:-1], *WaitReason])
def test_every_cause_has_its_advice(cause: str) -> None:
    times = {
        "tokenise": TimeSplit(other=9, tokenise=9),
        "swapped": TimeSplit(other=9, swapped=9),
        "suspended": TimeSplit(other=9, suspended=9),
        "paused": TimeSplit(other=9, paused=9),
    }
    if cause in list(WaitReason):
        split, told = TimeSplit(queued=9, queued_by=QueuedTime(**{cause: 9})), f"queued for {cause}"
    else:
        split, told = times.get(cause) or TimeSplit(**{cause: 9}), cause
    latency = Latency.of(view(times=split))
    assert latency.cause == told and "(100 %)" in latency.advice and ". To shorten it: " in latency.advice


async def test_the_database_tells_what_the_daemon_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = await Store.open(tmp_path / "llmos.db")
    views = [waited(), waited("abc-1"), waited("abc-2", created_at=2000.0), finished("plain")]
    store.add_events([Ended(one, 0) for one in views])
    store.add_events([Ended(waited("r1", created_at=5000.0, user="newer"), 0)])
    await store.close()
    path = tmp_path / "llmos.db"
    for one in views[1:]:
        assert Latency.of_row(query.request(path, one.id)) == Latency.of(one)
    assert query.request(path, "r1")["user"] == "newer", "an id that was used twice"
    assert query.request(path, "abc-2"[:5])["id"] == "abc-2"
    with pytest.raises(InvalidRequest, match="begin with 'abc'"):
        query.request(path, "abc")
    with pytest.raises(NotFound, match="'nope'"):
        query.request(path, "nope")

    where = ["--home", str(tmp_path), "--port", "1"]
    assert main(["explain", "r1", *where]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "r1  finished (stop)" and "user newer" in lines[1]
    assert lines[2] == "total 1.00 s, first token after 30.0 ms"
    bars = {line.split()[0]: line[line.index("|") + 1 : -1] for line in lines if line.endswith("|")}
    assert list(bars) == ["tokenise", "queued", "prefill", "decode", "preempted", "swapped", "rest"]
    assert bars["queued"].strip("#").strip() == "" and bars["queued"].count("#") > 0.6 * BAR
    assert ["slots", "600", "ms", "60", "%"] in [line.split() for line in lines]
    assert " ".join(lines).endswith("To shorten it: raise --slots, or send less at once.")
    assert main(["explain", "plain", *where]) == 0, "a row of an earlier version, without a timeline"
    assert main(["explain", "nope", *where]) == 2
    assert "'nope'" in capsys.readouterr().err


def test_who_was_left_by_its_daemon_is_shown_as_long_as_it_is_known_of() -> None:
    """The rest of its time was added by the next daemon."""
    times = TimeSplit(queued=10, decode=30, other=60, queued_by=QueuedTime(step=10))
    timeline = (("queued", 0), ("decode", 10), ("preempted", 20), ("decode", 20))
    found = list(intervals(Latency.of(view(times=times, timeline=timeline))))
    assert found[-2:] == [("decode", 20, 40), ("rest", 40, 100)]
    live = Latency.of(view(times=TimeSplit(queued=10), timeline=(("queued", 0),)))
    assert list(intervals(live))[-2:] == [("queued", 0, 10), ("rest", 10, 10)]


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=5), st.integers(1, 999))
def test_a_bar_shows_every_span_where_it_is(spans: list[tuple[int, int]], total: int) -> None:
    spans = [(min(a, b, total), min(max(a, b), total)) for a, b in spans]
    cells = bar(spans, total)
    assert len(cells) == BAR and set(cells) <= {"#", " "}
    for cell, shown in enumerate(cells):
        begin, end = cell * total, (cell + 1) * total
        assert (shown == "#") == any(a * BAR < end and b * BAR > begin and a < b for a, b in spans)


def test_spans_of_time_read_well() -> None:
    times = [0, 999, 12_345, 1_234_567, 45_600_000, 999_999_999, 3_456_789_012, 123_456_789_012]
    assert [span(time) for time in times] == [
        *("0 µs", "1 µs", "12 µs", "1.23 ms", "45.6 ms", "1,000 ms", "3.46 s", "123 s"),
    ]


def test_a_queued_request_that_just_came_has_no_share() -> None:
    assert "(0 %)" in Latency.of(view(state=State.QUEUED)).advice
