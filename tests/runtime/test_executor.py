"""Kernel and executor on the real model; as `--strict` runs it, so that equal means equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from llmosd.errors import StepError
from llmosd.runtime.continuation import text_of
from llmosd.runtime.distribution import Row
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import PagedModel, choose_backend, choose_kv_format
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.system.speculation import Speculation
from llmosd.types import Ended, FinishReason, Output, Plan, RequestSpec, RequestView, Sampling, StepResult, TokenLogprob

PAGES, PAGE_TOKENS = 400, 16
GREEDY = Sampling(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a fox who",
    "1, 2, 3, 5, 8, 13,",
    "In 1969 two men walked on the Moon. Their names were Neil Armstrong and Buzz Aldrin. The third man, who",
]


@pytest.fixture(scope="module")
def paged(model: InstalledModel) -> PagedModel:
    backend, _ = choose_backend("auto", strict=False)
    if backend != "native":
        pytest.skip("strict mode needs the native operators, which cannot be built here")
    ensure_graph(model, "native", "file", lambda stage, done, total: None)
    return PagedModel.load(
        model,
        backend="native",
        weights="file",
        pages=PAGES,
        page_tokens=PAGE_TOKENS,
        threads=2,
        spin=False,
        strict=True,
        kv_format=choose_kv_format("native", "auto"),
    )


@pytest.fixture(scope="module")
def tokenizer(model: InstalledModel) -> Tokenizer:
    return model.load_tokenizer()


@dataclass
class Told:
    """What one choice told its client."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@dataclass
class House:
    """A kernel with limits of its own over the shared model."""

    paged: PagedModel
    tokenizer: Tokenizer
    limits: Limits
    speculation: Speculation | None = None
    prefixes: bytes | None = None
    told: dict[tuple[str, int], Told] = field(default_factory=dict)
    ended: dict[str, RequestView] = field(default_factory=dict)
    results: list[StepResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kernel = Kernel(self.limits, POLICIES["fcfs"](), self.speculation, self.prefixes)
        self.executor = OnnxExecutor(self.paged, self.tokenizer, self.kernel.page_table, self.kernel.columns)

    def submit(self, id: str, prompt: str, sampling: Sampling) -> None:
        self.kernel.submit(RequestSpec(id, "m", self.tokenizer.encode(prompt, False), sampling), time.monotonic_ns())

    def step(self, execute: Callable[[Plan], StepResult] | None = None) -> None:
        plan = self.kernel.plan(time.monotonic_ns())
        assert plan is not None
        result = (execute or self.executor.execute)(plan)
        self.results.append(result)
        for event in self.kernel.commit(plan, result, time.monotonic_ns()):
            if isinstance(event, Output):
                told = self.told.setdefault((event.id, event.choice), Told())
                told.text += event.text
                told.tokens += event.tokens
                told.logprobs += event.logprobs
                told.finish = told.finish or event.finish
            elif isinstance(event, Ended):
                self.ended[event.request.id] = event.request

    def finish(self) -> None:
        while not self.kernel.idle:
            self.step()
        self.kernel.check()
        assert self.kernel.stats(False).pages_used == 0


@pytest.fixture
def house(paged: PagedModel, tokenizer: Tokenizer) -> Callable[..., House]:
    def make(slots: int = 8, token_budget: int = 256, pages: int = PAGES, prefixes: bytes | None = None) -> House:
        limits = Limits(slots, token_budget, 100, 512, PAGE_TOKENS, pages)
        return House(paged, tokenizer, limits, prefixes=prefixes)

    return make


_ALONE: dict[tuple[str, Sampling], Told] = {}


def alone(house: Callable[..., House], prompt: str, sampling: Sampling) -> Told:
    if (prompt, sampling) not in _ALONE:
        one = house()
        one.submit("a", prompt, sampling)
        one.finish()
        _ALONE[prompt, sampling] = one.told["a", 0]
    return _ALONE[prompt, sampling]


def test_chunks_and_company_change_nothing(house: Callable[..., House]) -> None:
    expected = [alone(house, prompt, GREEDY) for prompt in PROMPTS]
    together = house(token_budget=9)
    for number, prompt in enumerate(PROMPTS):
        together.submit(f"r{number}", prompt, GREEDY)
        together.step()
    together.finish()
    assert [together.told[f"r{number}", 0] for number in range(len(PROMPTS))] == expected
    assert " Paris" in expected[0].text


def test_preemption_changes_nothing(house: Callable[..., House]) -> None:
    """Sampled, penalised, with logprobs and a stop string: all state of a sequence survives recomputation."""
    sampling = Sampling(
        temperature=0.9,
        top_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        max_tokens=40,
        seed=11,
        logprobs=2,
        stop=("\n\n\n",),
        ignore_eos=True,
    )
    prompts = PROMPTS[0], PROMPTS[3]
    expected = [alone(house, prompt, sampling) for prompt in prompts]
    crowded = house(pages=6)
    for number, prompt in enumerate(prompts):
        crowded.submit(f"r{number}", prompt, sampling)
    crowded.finish()
    assert crowded.kernel.stats(False).preemptions > 0
    assert [crowded.told[f"r{number}", 0] for number in range(len(prompts))] == expected


RESTORED = Sampling(temperature=0.9, max_tokens=14, seed=11, ignore_eos=True)


@pytest.mark.parametrize(
    "sampling",
    [
        replace(RESTORED, temperature=0.0, stop=("ris, and", "Paris is the qqq")),  # held back, and given out again
        replace(RESTORED, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.3, top_p=0.95),
        replace(RESTORED, temperature=2.0, n=2),  # among its tokens are parts of characters
    ],
)
def test_a_restored_request_goes_on_as_if_nothing_had_been(house: Callable[..., House], sampling: Sampling) -> None:
    """At each step another kernel and executor take over: together the two say what one says."""
    whole = house()
    whole.submit("a", PROMPTS[0], sampling)
    whole.finish()
    for steps in range(len(whole.results)):
        before, after = house(), house()
        before.submit("a", PROMPTS[0], sampling)
        for _ in range(steps):
            before.step()
        before.kernel.suspend("a", time.monotonic_ns())
        snapshot = before.kernel.snapshot("a", time.monotonic_ns())
        texts = [text_of(branch.tokens, snapshot.spec.sampling, after.tokenizer) for branch in snapshot.branches]
        assert texts == [before.told.get(("a", choice), Told()).text for choice in range(sampling.n)]
        after.kernel.restore(snapshot, time.monotonic_ns() - snapshot.age, time.monotonic_ns())
        after.kernel.resume("a", time.monotonic_ns())
        after.finish()
        for key, expected in whole.told.items():
            begun, rest = before.told.get(key, Told()), after.told.get(key, Told())
            assert begun.text + rest.text == expected.text
            assert begun.tokens + rest.tokens == expected.tokens
            assert (begun.finish or rest.finish) == expected.finish


def test_choices_differ_from_each_other_and_not_from_themselves(house: Callable[..., House]) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=5, ignore_eos=True)
    expected = alone(house, PROMPTS[3], sampling)
    forked = house()
    forked.submit("a", PROMPTS[3], replace(sampling, n=3))
    forked.finish()
    assert forked.told["a", 0] == expected
    assert len({forked.told["a", choice].text for choice in range(3)}) == 3


def test_sixty_four_at_once_all_get_their_own_text(house: Callable[..., House]) -> None:
    sampling = replace(GREEDY, max_tokens=4)
    crowd = house(slots=64)
    for number in range(64):
        crowd.submit(f"r{number}", f"The number that comes after {number} is", sampling)
    crowd.finish()
    assert all(view.completion_tokens == 4 and view.error is None for view in crowd.ended.values())
    assert len(crowd.ended) == 64
    for number in (0, 63):
        assert crowd.told[f"r{number}", 0] == alone(house, f"The number that comes after {number} is", sampling)


def test_a_stop_string_that_spans_tokens_ends_the_text_before_it(house: Callable[..., House]) -> None:
    free = alone(house, PROMPTS[0], GREEDY)
    start = len(free.text) // 2
    stop = free.text[start - 3 : start + 4]
    told = alone(house, PROMPTS[0], replace(GREEDY, stop=("never said", stop)))
    assert told.finish is FinishReason.STOP
    assert told.text == free.text[: free.text.index(stop)]
    assert told.tokens == free.tokens[: len(told.tokens)]
    assert len(told.tokens) < len(free.tokens)


def test_ends_at_max_tokens_and_at_the_end_of_text(house: Callable[..., House], tokenizer: Tokenizer) -> None:
    assert alone(house, PROMPTS[0], GREEDY).finish is FinishReason.LENGTH
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    one = house()
    one.kernel.submit(
        RequestSpec("a", "m", tokenizer.encode(chat, True), Sampling(temperature=0.0, max_tokens=50)),
        time.monotonic_ns(),
    )
    one.finish()
    told = one.told["a", 0]
    assert told.finish is FinishReason.STOP
    assert told.tokens[-1] in tokenizer.eos_ids
    assert told.text == tokenizer.decode(told.tokens[:-1])
    assert one.ended["a"].completion_tokens == len(told.tokens)


def test_logprobs_name_the_chosen_and_the_likeliest(house: Callable[..., House], tokenizer: Tokenizer) -> None:
    told = alone(house, PROMPTS[1], replace(GREEDY, logprobs=3))
    assert [entry.token for entry in told.logprobs] == list(told.tokens)
    assert tokenizer.decode(entry.token for entry in told.logprobs) == told.text
    for entry in told.logprobs:
        assert entry.top[0] == (entry.token, entry.logprob)
        assert [value for _, value in entry.top] == sorted((v for _, v in entry.top), reverse=True)
        assert sum(np.exp(value) for _, value in entry.top) <= 1.0 + 1e-5


def test_a_failed_step_can_be_executed_again(house: Callable[..., House]) -> None:
    """A page number out of range makes the operator fail; with the page put right the same plan succeeds."""
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=3, frequency_penalty=0.5, ignore_eos=True)
    expected = alone(house, PROMPTS[0], sampling)
    broken = house()
    broken.submit("a", PROMPTS[0], sampling)

    def fail_first(plan: Plan) -> StepResult:
        table, entry = broken.kernel.page_table, plan.sequences[0].row * broken.kernel.columns
        right, table[entry] = table[entry], PAGES
        with pytest.raises(StepError, match="page"):
            broken.executor.execute(plan)
        table[entry] = right
        return broken.executor.execute(plan)

    while not broken.kernel.idle:
        broken.step(fail_first)
    assert broken.told["a", 0] == expected


class FirstRowBroken:
    """The real model, but while `broken` the first row of logits of each step holds a NaN."""

    draws = False  # its tokens come of what it returns

    def __init__(self, model: PagedModel) -> None:
        self.broken = True
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def run(self, *inputs: Any) -> Row:
        logits = self._model.run(*inputs)
        logits[:1, 1000] = np.where(self.broken, np.nan, logits[:1, 1000])
        return logits


def test_logits_that_are_not_finite_fail_their_own_sequence_only(
    house: Callable[..., House], paged: PagedModel
) -> None:
    expected = alone(house, PROMPTS[1], GREEDY)
    model: Any = FirstRowBroken(paged)
    both = replace(house(), paged=model)
    both.submit("bad", PROMPTS[0], GREEDY)
    both.submit("good", PROMPTS[1], GREEDY)
    both.step()
    model.broken = False
    both.finish()
    assert "not finite" in str(both.ended["bad"].error)
    assert both.ended["good"].error is None
    assert both.told["good", 0] == expected


class Undrawn:
    """The real model, whose tokens are drawn after its runs."""

    draws = False

    def __init__(self, model: PagedModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def test_tokens_are_the_same_drawn_within_a_run_or_after_it(house: Callable[..., House], paged: PagedModel) -> None:
    model: Any = Undrawn(paged)
    within, after = house(), replace(house(), paged=model)
    for number, prompt in enumerate(PROMPTS):
        sampling = Sampling(
            temperature=0.4 * number, top_p=0.95, presence_penalty=0.5, logprobs=number or None, max_tokens=12, seed=7
        )
        for one in (within, after):
            one.submit(str(number), prompt, sampling)
    within.finish()
    after.finish()
    assert within.told == after.told


def test_time_is_measured(house: Callable[..., House]) -> None:
    one = house()
    one.submit("a", PROMPTS[0], GREEDY)
    one.finish()
    assert all(0 < result.run_ns < result.execute_ns for result in one.results)


SYSTEM = """You keep the log of a lighthouse. Every entry has a date, the weather, the ships that passed and what the
keeper had for supper. Write plainly, in whole sentences, and never make up a ship. When nothing happened, say so. Fog
is noted with the hour it came and the hour it went. The lamp is lit at sunset and put out at sunrise, whatever the
day."""


@pytest.mark.parametrize("together", [True, False], ids=["all at once", "one after the other"])
def test_a_common_beginning_is_computed_once_and_changes_nothing(house: Callable[..., House], together: bool) -> None:
    world = house(slots=16, prefixes=b"a secret")
    prompts = [f"{SYSTEM} Entry number {number}: the {what}" for number, what in enumerate(["fog", "sea", "lamp"] * 4)]
    sampling = replace(GREEDY, max_tokens=6)
    for number, prompt in enumerate(prompts):
        world.submit(str(number), prompt, sampling)
        if not together:
            world.finish()
    world.finish()
    common, lengths = len(world.tokenizer.encode(SYSTEM, False)), [view.prompt_tokens for view in world.ended.values()]
    computed = world.kernel.stats(False).prompt_tokens
    assert computed <= 1.1 * (common + sum(length - common for length in lengths))
    for number in (0, 5, 11):
        assert world.told[str(number), 0].tokens == alone(house, prompts[number], sampling).tokens


def test_what_is_preempted_goes_on_from_its_own_pages(house: Callable[..., House]) -> None:
    sampling = replace(GREEDY, max_tokens=60)
    world = house(pages=9, prefixes=b"a secret")
    for number, prompt in enumerate(PROMPTS[:3]):
        world.submit(str(number), prompt, sampling)
    world.finish()
    assert world.kernel.stats(False).preemptions > 0
    for number, prompt in enumerate(PROMPTS[:3]):
        assert world.told[str(number), 0].tokens == alone(house, prompt, sampling).tokens
