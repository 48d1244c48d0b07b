"""Guesses repeat what came before, their accuracy and their cost are learnt, and they are made where they pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.prediction.cost_executor import CostModel, CostModelExecutor, ManualClock
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.lookup import Lookup
from llmosd.system.policy import POLICIES
from llmosd.system.request import Sequence as Continuation
from llmosd.system.speculation import MOST, Speculation, StepCost
from llmosd.types import Event, Output, Plan, RequestSpec, Sampling, SequencePlan, SequenceResult, StepResult
from tests.system.world import World, make_limits

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(prompt=TOKENS, output=TOKENS)
def test_a_guess_is_what_followed_the_same_two_tokens(prompt: list[int], output: list[int]) -> None:
    lookup = Lookup(prompt)
    history = list(prompt)
    for token in [None, *output]:
        if token is not None:
            history.append(token)
            lookup.follow([token])
        seen = tuple(history[-2:]) in set(pairwise(history[:-1]))
        assert len(lookup) == len(history)
        assert bool(lookup.guess(1)) == (lookup.chance(0) > 0) == seen
        if guess := lookup.guess(6):
            assert any(_repeats(history, place, guess) for place in range(2, len(history)))


def _repeats(history: list[int], place: int, guess: list[int]) -> bool:
    """Whether it follows the last two tokens' earlier place, going on with itself where the history ends."""
    endless = [*history, *guess]
    return history[place - 2 : place] == history[-2:] and endless[place : place + len(guess)] == guess


def test_a_text_that_repeats_is_guessed_over_its_end() -> None:
    assert Lookup([1, 2, 3, 1, 2]).guess(7) == [3, 1, 2, 3, 1, 2, 3]
    assert Lookup([1, 2, 3, 4]).guess(7) == Lookup([1]).guess(7) == []


def test_longer_matches_are_trusted_more() -> None:
    text = list(range(20))
    short, long = Lookup([*text, 30, 5, 6]), Lookup([*text, *range(2, 12)])
    assert 0 < short.chance(0) < long.chance(0) < 1
    assert short.chance(8) == long.chance(8) == long.chance(0)


def test_trust_follows_what_comes() -> None:
    right, wrong = Lookup([1, 2, 3, 4] * 2), Lookup([1, 2, 3, 4] * 2)
    before = right.chance(0)
    right.follow([1, 2, 3, 4] * 5)
    for token in range(10, 40):
        wrong.follow([token, 1, 2])
    assert right.chance(0) > before
    assert wrong.chance(0) < 0.15 < Lookup([1, 2, 3, 1, 2]).chance(0)


@given(
    base=st.floats(1e6, 1e8),
    share=st.floats(0.02, 1.0),
    sequences=st.integers(1, 8),
    drafts=st.lists(st.integers(0, MOST), min_size=100, max_size=100),
)
def test_cost_of_a_token_is_learnt(base: float, share: float, sequences: int, drafts: list[int]) -> None:
    """To within what the prior still weighs, while the context and with it every step becomes dearer."""
    cost, token = StepCost(), share * base / (sequences + 3)
    for step, more in enumerate([0, 5, *drafts, 0]):
        cost.observe(sequences, sequences + more, round(base * (1 + step / 1e4) + token * more))
    prior = 1.1 * base / (sequences + 3)
    assert cost.step(sequences) == pytest.approx(base, rel=0.5)
    assert 0 <= cost.token <= max(token, prior) * 2.1


def test_pauses_of_the_machine_do_not_hide_the_cost_of_a_token() -> None:
    cost = StepCost()
    for step in range(200):
        drafts = step % 2 * 8
        pause = 50_000_000 if step % 40 == 7 else 0  # ten steps long
        cost.observe(1, 1 + drafts, 5_000_000 + 300_000 * drafts + pause)
    assert cost.token == pytest.approx(300_000, rel=0.5)
    assert cost.step(1) == pytest.approx(5_000_000, rel=0.25)


def test_a_cost_found_too_high_is_tried_again() -> None:
    cost = StepCost()
    for step in range(40):
        cost.observe(1, 1 + step % 2 * 8, 1_000_000 * (1 + step % 2 * 20))
    high = cost.token
    for _ in range(2000):
        cost.observe(1, 1, 1_000_000)
    assert high > 500_000 > 300_000 > cost.token


# ---- kernel, cost model and manual clock: the i-th token of an answer is i


def run(
    prompts: list[list[int]], cost: CostModel, speculation: Speculation | None, max_tokens: int = 60
) -> tuple[list[list[int]], int]:
    """What each request got, and the time it took."""
    clock = ManualClock()
    kernel = Kernel(Limits(8, 64, 100, 400, 16, 200), POLICIES["fcfs"](), speculation)
    executor = CostModelExecutor(cost, lambda _start: max_tokens, clock)
    got = [list[int]() for _ in prompts]
    for number, prompt in enumerate(prompts):
        kernel.submit(RequestSpec(str(number), "m", prompt, Sampling(max_tokens=max_tokens)), clock.now)
    while plan := kernel.plan(clock.now):
        for event in kernel.commit(plan, executor.execute(plan), clock.now):
            if isinstance(event, Output):
                got[int(event.id)] += event.tokens
        kernel.check()
    return got, clock.now


QUOTED = [*range(60), 500, 0, 1]  # a prompt that the whole answer stands in
MEMORY_BOUND = CostModel(step=5e6, prefill=2e5, decode=2e5, context=0)
COMPUTE_BOUND = CostModel(step=1e4, prefill=1e6, decode=1e6, context=0)


def test_an_answer_that_quotes_takes_a_fraction_of_the_time() -> None:
    speculation = Speculation()
    plain, slow = run([QUOTED], MEMORY_BOUND, None)
    guessed, fast = run([QUOTED], MEMORY_BOUND, speculation)
    assert guessed == plain == [list(range(60))]
    assert fast < 0.4 * slow
    assert speculation.accepted > 0.8 * speculation.drafted > 0


def test_of_many_answers_each_has_its_turn() -> None:
    speculation = Speculation()
    plain, slow = run([QUOTED] * 8, MEMORY_BOUND, None)
    guessed, fast = run([QUOTED] * 8, MEMORY_BOUND, speculation)
    assert guessed == plain
    assert speculation.accepted > 200
    assert fast < 0.8 * slow


def test_nothing_is_guessed_without_a_repetition() -> None:
    speculation = Speculation()
    assert run([[500] * 3], MEMORY_BOUND, speculation) == run([[500] * 3], MEMORY_BOUND, None)
    assert speculation.drafted == 0


def test_what_does_not_pay_is_left_off() -> None:
    """Where a token costs the same in any step a guess gains nothing; finding that out takes a few."""
    speculation = Speculation()
    _, plain = run([QUOTED] * 8, COMPUTE_BOUND, None)
    _, guessed = run([QUOTED] * 8, COMPUTE_BOUND, speculation)
    assert guessed < 1.02 * plain


def test_wrong_guesses_are_given_up() -> None:
    """A prompt in which each three tokens of the answer stand last with something else behind them."""
    misleading = [token for i in reversed(range(60)) for token in (i, i + 1, i + 2, 900 + i)]
    speculation = Speculation()
    got, guessed = run([misleading], MEMORY_BOUND, speculation)
    plain, unguessed = run([misleading], MEMORY_BOUND, None)
    assert got == plain
    assert speculation.accepted == 0 < speculation.drafted < 30
    assert guessed < 1.1 * unguessed


# ---- plans and commits


class Eager(Speculation):
    """Guesses token 5 wherever there is room."""

    def guesses(
        self, decoding: Sequence[Continuation], room: Callable[[Continuation], int], left: int
    ) -> list[list[int]]:
        made = []
        for sequence in decoding:
            made.append([5] * min(room(sequence), left))
            left -= len(made[-1])
        return made


def decoding(world: World) -> Plan:
    """The first plan with a guess, in flight."""
    while True:
        plan = world.kernel.plan(world.now)
        assert plan is not None
        if plan.drafts:
            return plan
        world.kernel.commit(plan, world.executor.execute(plan), world.now)


def test_guesses_stay_within_page_budget_and_max_tokens() -> None:
    world = World(make_limits(page_tokens=16, token_budget=7), speculation=Eager())
    world.submit(3, 30)
    assert [part.drafts for part in decoding(world).sequences] == [6]
    world = World(make_limits(page_tokens=8), speculation=Eager())
    world.submit(3, 30)
    assert [part.drafts for part in decoding(world).sequences] == [4]
    world = World(make_limits(page_tokens=16), speculation=Eager())
    world.submit(3, 4)
    assert [part.drafts for part in decoding(world).sequences] == [2]


@pytest.mark.parametrize("slots", [1, 2])
def test_guesses_stay_within_the_policys_chunk(slots: int) -> None:
    """Whether a slot is free beside what decodes or not."""
    policy, clock = POLICIES["fcfs"](), ManualClock()
    policy.chunk = 2
    kernel = Kernel(make_limits(slots=slots, page_tokens=16), policy, Eager())
    executor = CostModelExecutor(MEMORY_BOUND, lambda _start: 30, clock)
    kernel.submit(RequestSpec("a", "m", [1, 2], Sampling(max_tokens=30)), clock.now)
    drafts = list[int]()
    while plan := kernel.plan(clock.now):
        drafts.append(plan.drafts)
        kernel.commit(plan, executor.execute(plan), clock.now)
    assert max(drafts) == 2


@pytest.mark.parametrize("tokens", [(4, 5), (5, 6, 5), (5,) * 8])
def test_tokens_behind_a_wrong_guess_are_refused(tokens: tuple[int, ...]) -> None:
    world = World(make_limits(page_tokens=8), speculation=Eager())
    world.submit(3, 30)
    plan = decoding(world)
    [part] = plan.sequences
    with pytest.raises(ValueError, match="not fed"):
        world.kernel.commit(plan, StepResult(plan.step, (SequenceResult(part.sequence, tokens),)), world.now)
    right = StepResult(plan.step, (SequenceResult(part.sequence, (5, 5, 9)),))
    [output] = [e for e in world.kernel.commit(plan, right, world.now) if isinstance(e, Event)]
    assert output.tokens == (5, 5, 9)
    world.kernel.check()
    stats = world.kernel.stats(False)
    assert (stats.drafted_tokens, stats.accepted_tokens) == (part.drafts, 2)
    following = world.kernel.plan(world.now)
    assert following is not None
    assert list(following.sequences[0].tokens[:1]) == [9]
    assert following.sequences[0].past == part.past + 3


def test_drafts_of_a_plan_are_its_sequences() -> None:
    plan = Plan(0, (SequencePlan(1, 0, [1, 2, 3], 0, True, 2), SequencePlan(2, 1, [1], 0, True)))
    assert (plan.drafts, plan.query_tokens) == (2, 4)
