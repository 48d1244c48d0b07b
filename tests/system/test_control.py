"""One command on many requests: exactly those that are meant, all of them or none, and effective with the next plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.errors import Forbidden, InvalidRequest, LlmosError, NotFound
from llmosd.system.control import Action, Kill, Nice, Resume, Selection, Suspend, control
from llmosd.system.kernel import Kernel
from llmosd.system.kernels import Kernels
from llmosd.system.policy import POLICIES
from llmosd.types import NICE_MAX, NICE_MIN, RequestSpec, RequestView, Sampling, State
from tests.system.symbolic import SymbolicExecutor
from tests.system.world import make_limits

USERS, SESSIONS = ("ann", "bob"), ("chat", "")


class House:
    """Requests of two users in two sessions, some of which run while others wait."""

    def __init__(self, count: int, slots: int = 2) -> None:
        self.kernel = Kernel(make_limits(slots=slots), POLICIES["priority"](), model="m")
        self.kernels = Kernels(self.kernel)
        self.executor = SymbolicExecutor(self.kernel)
        self.now = 0
        for number in range(count):
            self.submit(f"r{number}", USERS[number % 2], SESSIONS[number // 2 % 2])

    def submit(self, id: str, user: str, session: str = "") -> None:
        service_class = "batch" if user == "bob" else "interactive"
        sampling = Sampling(max_tokens=20, ignore_eos=True)
        spec = RequestSpec(id, "m", [1, 2, 3], sampling, user=user, session=session, service_class=service_class)
        self.kernels.submit(spec, self.now)

    def step(self) -> list[str]:
        """Ids of the requests that the plan feeds."""
        plan = self.kernels.plan(self.now)
        if plan is None:
            return []
        fed = [self.kernel._sequences[part.sequence].request.id for part in plan.sequences]
        result = self.executor.execute(plan)
        self.now += 1
        self.kernels.commit(plan, result, self.now)
        self.kernels.check()
        return fed

    def control(self, action: Action, selection: Selection, owner: str | None = None) -> tuple[RequestView, ...]:
        views, _ = control(self.kernels, action, selection, owner, self.now)
        self.kernels.check()
        return views

    def views(self) -> dict[str, RequestView]:
        return {view.id: view for view in self.kernels.views()}


def selections() -> st.SearchStrategy[Selection]:
    def some(values: tuple[str, ...]) -> st.SearchStrategy[str | None]:
        return st.none() | st.sampled_from(values)

    filters = st.builds(
        Selection,
        user=some(USERS),
        session=some(("chat", "r3", "nobody's")),
        state=st.none() | st.sampled_from(State),
        model=some(("m", "other")),
        service_class=some(("interactive", "batch")),
    )
    ids = st.lists(st.sampled_from([*(f"r{i}" for i in range(8)), "gone"]), min_size=1, max_size=4).map(tuple)
    return filters | st.builds(Selection, ids)


actions = st.sampled_from([Kill("no reason"), Suspend(), Resume()]) | st.builds(Nice, st.integers(-25, 25))
commands = st.tuples(st.integers(0, 3), actions, selections(), st.none() | st.sampled_from(USERS))


@given(st.lists(commands, max_size=8))
def test_a_command_concerns_exactly_those_that_are_meant_or_nobody(
    script: list[tuple[int, Action, Selection, str | None]],
) -> None:
    house = House(8)
    for steps, action, selection, owner in script:
        for _ in range(steps):
            house.step()
        before = house.views()
        try:
            changed = {view.id: view for view in house.control(action, selection, owner)}
        except LlmosError:
            assert house.views() == before
            continue
        meant = {id for id, view in before.items() if is_meant(view, selection, owner)}
        assert changed.keys() == meant and (not selection.ids or meant == set(selection.ids))
        after = house.views()
        for id, view in before.items():
            if id in meant:
                assert is_done(action, changed[id]) and (id in after) != isinstance(action, Kill)
            else:
                assert replace(after[id], position=None) == replace(view, position=None)
    live = house.control(Resume(), Selection(state=State.SUSPENDED))
    assert all(view.state is not State.SUSPENDED for view in live)
    while house.step():
        pass
    assert not house.views() and house.kernels.stats(False).pages_used == 0


def is_meant(view: RequestView, selection: Selection, owner: str | None) -> bool:
    """As the documentation says it, written down once more."""
    if selection.ids:
        return view.id in selection.ids
    return owner in (None, view.user) and not any(
        (
            selection.user not in (None, view.user),
            selection.session not in (None, view.session),
            selection.state not in (None, view.state),
            selection.model not in (None, view.model),
            selection.service_class not in (None, view.service_class),
        )
    )


def is_done(action: Action, view: RequestView) -> bool:
    match action:
        case Kill():
            return view.state is State.CANCELLED and view.pages == 0
        case Nice(value=value):
            return view.nice == value
        case Suspend():
            return view.state is State.SUSPENDED and view.pages == 0
    return view.state is not State.SUSPENDED


@pytest.mark.parametrize("nice", [NICE_MIN - 1, NICE_MAX + 1])
def test_nice_out_of_range_changes_nobody(nice: int) -> None:
    house = House(4)
    before = house.views()
    with pytest.raises(InvalidRequest, match=f"nice must be -20 to 19, not {nice}"):
        house.control(Nice(nice), Selection(user="ann"))
    assert house.views() == before


def test_what_is_anothers_is_refused_by_name_and_passed_over_by_filter() -> None:
    house = House(4)
    with pytest.raises(Forbidden, match="r1 is another user's"):
        house.control(Kill(""), Selection(("r0", "r1")), "ann")
    with pytest.raises(Forbidden, match="'bob' are not yours"):
        house.control(Kill(""), Selection(user="bob"), "ann")
    with pytest.raises(NotFound):
        house.control(Kill(""), Selection(("r0", "gone")), "ann")
    assert len(house.views()) == 4
    assert [view.id for view in house.control(Kill(""), Selection(model="m"), "ann")] == ["r0", "r2"]
    assert house.views().keys() == {"r1", "r3"}


def test_a_killed_request_is_in_no_further_plan_and_its_pages_serve_others_at_once() -> None:
    house = House(2, slots=2)
    house.submit("waits", "bob")
    assert house.step() == ["r0", "r1"]
    held = {id: view.pages for id, view in house.views().items()}
    house.control(Kill(""), Selection(user="ann"))
    assert house.kernels.stats(False).pages_used == held["r1"]
    assert house.step() == ["r1", "waits"]


def test_nice_counts_from_the_next_plan_on() -> None:
    house = House(1, slots=1)
    for id in ("first", "second"):
        house.submit(id, "cat")
    assert house.step() == ["r0"]
    house.control(Nice(-5), Selection(("second",)))
    house.control(Kill(""), Selection(("r0",)))
    assert house.step() == ["second"]


def test_a_session_is_the_request_itself_where_none_is_named() -> None:
    house = House(4)
    assert [view.id for view in house.control(Suspend(), Selection(session="r3"))] == ["r3"]
    assert {view.id for view in house.control(Suspend(), Selection(session="chat"))} == {"r0", "r1"}
