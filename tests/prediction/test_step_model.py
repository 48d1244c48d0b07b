"""Known coefficients come back through noise, pauses and drift; what is said of errors is what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmosd.prediction.step_model import StepFit, StepModel
from llmosd.system.costs import StepWork
from llmosd.types import Plan, SequencePlan, StepResult

COSTS = [field.name for field in fields(StepFit)][:5]
TRUTH = StepFit(5e-3, 6e-4, 1e-6, 4e-4, 8e-8, steps=0, drifts=0, bias=0, error=0, noise=0)


class Frozen(StepModel):
    """What it assumed to begin with, passed off as a fit."""

    def learn(self, work: StepWork, took: float) -> None:
        pass


def cost(work: StepWork, machine: StepFit) -> float:
    return (
        machine.step
        + machine.decode * work.decodes
        + machine.context * work.context
        + machine.prefill * work.prefill
        + machine.attention * work.attended
    )


def mixed(random: Random) -> StepWork:
    work, decodes = StepWork(), random.randint(0, 16)
    for _ in range(decodes):
        work.add(1, random.randint(20, 1500), sample=True)
    if not decodes or random.random() < 0.5:
        work.add(random.randint(2, 256 - decodes), random.randint(0, 1500), sample=False)
    return work


def decodes_only(random: Random) -> StepWork:
    work = StepWork()
    for _ in range(8):
        work.add(1, random.randint(500, 600), sample=True)
    return work


class Machine:
    """Noise of 5 % in each step, and half a second's pause in one of fifty."""

    def __init__(self, truth: StepFit = TRUTH, seed: int = 0, model: StepModel | None = None) -> None:
        self.truth = truth
        self.model = model or StepModel()
        self.errors: list[float] = []
        self._random = Random(seed)

    def run(self, steps: int, load: Callable[[Random], StepWork] = mixed) -> None:
        for _ in range(steps):
            work = load(self._random)
            took = cost(work, self.truth) * self._random.uniform(0.95, 1.05)
            took += 0.5 if len(self.errors) % 50 == 49 else 0.0
            self.errors.append(took / self.model.step_s(work) - 1)
            self.model.learn(work, took)

    def slow_down(self, by: float) -> None:
        self.truth = replace(self.truth, **{name: by * getattr(self.truth, name) for name in COSTS})

    def check_known(self, within: float) -> None:
        for name in COSTS:
            assert getattr(self.model.fit, name) == pytest.approx(getattr(self.truth, name), rel=within), name

    def check_expects(self, within: float) -> None:
        """Of mixed steps, on average."""
        works = [mixed(self._random) for _ in range(200)]
        errors = [abs(self.model.step_s(work) / cost(work, self.truth) - 1) for work in works]
        assert sum(errors) / len(errors) <= within


machines = st.builds(
    StepFit,
    step=st.floats(1e-3, 3e-2),
    decode=st.floats(1e-4, 3e-3),
    context=st.floats(2e-7, 5e-6),
    prefill=st.floats(5e-5, 5e-3),
    attention=st.floats(0, 1e-6),
    **{name: st.just(0) for name in ("steps", "drifts", "bias", "error", "noise")},
)


def test_known_coefficients_are_recovered_through_noise_and_pauses() -> None:
    machine = Machine()
    machine.run(1000)
    machine.check_known(within=0.1)
    assert (machine.model.fit.steps, machine.model.fit.drifts) == (1000, 0)


def test_a_constant_passed_off_as_a_fit_is_found_out() -> None:
    machine = Machine(model=Frozen())
    machine.run(1000)
    with pytest.raises(AssertionError):
        machine.check_known(within=0.1)
    with pytest.raises(AssertionError):
        machine.check_expects(within=0.1)


@given(machines, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_steps_of_any_machine_are_expected_right(truth: StepFit, seed: int) -> None:
    machine = Machine(truth, seed)
    machine.run(600)
    machine.check_expects(within=0.1)
    assert all(getattr(machine.model.fit, name) >= 0 for name in COSTS)


@pytest.mark.parametrize("by", [3.0, 0.4])
def test_a_machine_that_changes_its_pace_is_followed_within_some_steps(by: float) -> None:
    machine = Machine()
    machine.run(500)
    machine.slow_down(by)
    machine.run(20)
    machine.check_expects(within=0.2)
    machine.run(180)
    machine.check_expects(within=0.1)


def test_a_cost_that_drifts_alone_is_followed() -> None:
    machine = Machine()
    machine.run(500)
    machine.truth = replace(TRUTH, prefill=2 * TRUTH.prefill)
    machine.run(500)
    machine.check_expects(within=0.1)


def test_an_hour_of_decodes_forgets_nothing_of_prefill() -> None:
    machine = Machine()
    machine.run(500)
    machine.run(20_000, decodes_only)
    machine.check_expects(within=0.1)


def test_what_prefill_costs_is_learnt_from_its_first_steps_even_late() -> None:
    machine = Machine(replace(TRUTH, prefill=4e-3))
    machine.run(2000, decodes_only)
    machine.run(10)
    machine.check_expects(within=0.2)


def test_the_errors_told_are_those_made_before_learning() -> None:
    machine = Machine()
    machine.run(3000)
    last = machine.errors[-1500:]
    fit = machine.model.fit
    assert fit.error == pytest.approx(sum(map(abs, last)) / len(last), rel=0.2)
    assert fit.bias == pytest.approx(sum(last) / len(last), rel=0.2)  # pauses in full: a mean step is that much longer
    assert fit.noise == pytest.approx(0.025, rel=0.3)  # the median of what is even between 0 and 5 %


def test_a_prompts_price_and_the_tokens_that_it_buys_are_inverse() -> None:
    machine = Machine()
    machine.run(500)
    for tokens, past in ((1, 0), (40, 0), (40, 3000), (256, 100)):
        assert machine.model.tokens(machine.model.seconds(tokens, past), past) == pytest.approx(tokens)
    assert machine.model.tokens(-1.0, 0) == machine.model.tokens(0.0, 100) == 0


def test_steps_are_taken_from_plans_and_those_with_guesses_left_out() -> None:
    model, started = StepModel(), StepModel().fit
    parts: tuple[Any, ...] = SequencePlan(1, 1, [1], 100, True), SequencePlan(2, 2, [1] * 40, 60, False)
    model.observe(Plan(0, parts), StepResult(0, ()))
    model.observe(Plan(0, ()), StepResult(0, (), execute_ns=10**9))
    model.observe(Plan(0, (SequencePlan(1, 1, [1, 2], 100, True, drafts=1),)), StepResult(0, (), execute_ns=10**9))
    assert model.fit == started
    model.observe(Plan(0, parts), StepResult(0, (), execute_ns=70_000_000))
    assert model.fit.steps == 1
    assert StepWork.of(Plan(0, parts)) == StepWork(1, 100, 40, 40 * 80)
    assert model.step_s(StepWork.of(Plan(0, parts))) == pytest.approx(0.07)


def test_of_steps_that_only_decode_one_in_four_is_learnt_from_once_warm() -> None:
    model, result = StepModel(), StepResult(0, (), execute_ns=10**7)
    decode = Plan(0, (SequencePlan(1, 1, [1], 100, True),))
    prefill = Plan(0, (SequencePlan(1, 1, [1] * 40, 100, False),))
    for _ in range(16):
        model.observe(decode, result)
    assert model.fit.steps == 16
    for _ in range(40):
        model.observe(decode, result)
    assert model.fit.steps == 26
    for _ in range(10):
        model.observe(prefill, result)
    assert model.fit.steps == 36
