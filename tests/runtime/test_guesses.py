"""On the real model, guesses change neither tokens nor text nor log probabilities, only how many come in a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest

from llmosd.errors import StepError
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import PagedModel, choose_backend, choose_kv_format
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.system.request import Sequence as Continuation
from llmosd.system.speculation import Speculation, StepCost
from llmosd.types import FinishReason, KernelStats, Output, Plan, RequestSpec, Sampling, TokenLogprob

PARAGRAPH = (
    "The harbour of the old town lies between two hills. Each morning the fishing boats return with their catch, and "
    "the market on the quay opens before the sun has risen over the eastern hill."
)
CODE = "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return area("
TASKS = [
    f"<|im_start|>user\nRepeat this paragraph: {PARAGRAPH}<|im_end|>\n<|im_start|>assistant\n",
    CODE,
    "1. one\n2. two\n3. three\n4. four\n5. five\n6.",
    "Once upon a time there was a fox who",
]
GREEDY = Sampling(temperature=0.0, max_tokens=40, ignore_eos=True)
SAMPLED = Sampling(temperature=0.4, top_p=0.9, seed=3, max_tokens=40, ignore_eos=True)
EVERYTHING = replace(
    SAMPLED, repetition_penalty=1.05, presence_penalty=0.1, frequency_penalty=0.1, logprobs=2, stop=("!!!",)
)
Told = tuple[tuple[int, ...], str, tuple[TokenLogprob, ...], FinishReason | None]


@pytest.fixture(scope="module")
def paged(model: InstalledModel) -> Iterator[PagedModel]:
    backend, _ = choose_backend("auto", strict=False)
    if backend != "native":
        pytest.skip("equal tokens need the native operators, which cannot be built here")
    ensure_graph(model, "native", "file", lambda stage, done, total: None)
    paged = PagedModel.load(
        model,
        backend="native",
        weights="file",
        pages=100,
        page_tokens=16,
        threads=2,
        spin=False,
        strict=True,
        kv_format=choose_kv_format("native", "auto"),
    )
    yield paged
    paged.close()


@pytest.fixture(scope="module")
def tokenizer(model: InstalledModel) -> Tokenizer:
    return model.load_tokenizer()


class Free(StepCost):
    """Further tokens cost nothing."""

    token = 0.0

    def step(self, sequences: int) -> float:
        return 1.0


class Eager(Speculation):
    """Guesses what the lookup says, cut at random, as if it cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._cost = Free()
        self._random = Random(1)

    def guesses(
        self, decoding: Sequence[Continuation], room: Callable[[Continuation], int], left: int
    ) -> list[list[int]]:
        made = super().guesses(decoding, room, left)
        return [guess[: self._random.randint(0, 7)] for guess in made]


Ask = Callable[..., tuple[dict[tuple[str, int], Told], KernelStats]]


@pytest.fixture(scope="module")
def ask(paged: PagedModel, tokenizer: Tokenizer) -> Ask:
    """Submit (prompt, sampling) pairs at once and run them to their ends."""

    def ask(
        *asked: tuple[str, Sampling], guess: bool, pages: int = 100, failing: bool = False
    ) -> tuple[dict[tuple[str, int], Told], KernelStats]:
        limits = Limits(8, 128, 100, 512, 16, pages)
        kernel = Kernel(limits, POLICIES["fcfs"](), Eager() if guess else None)
        executor = OnnxExecutor(paged, tokenizer, kernel.page_table, kernel.columns)
        for number, (prompt, sampling) in enumerate(asked):
            kernel.submit(RequestSpec(f"r{number}", "m", tokenizer.encode(prompt, True), sampling), 0)
        told: dict[tuple[str, int], Told] = {}
        while plan := kernel.plan(time.monotonic_ns()):
            if failing:
                _break(kernel, executor, plan)
            for event in kernel.commit(plan, executor.execute(plan), time.monotonic_ns()):
                if isinstance(event, Output):
                    tokens, text, logprobs, _ = told.get((event.id, event.choice), ((), "", (), None))
                    told[event.id, event.choice] = (
                        tokens + event.tokens,
                        text + event.text,
                        logprobs + event.logprobs,
                        event.finish,
                    )
            kernel.check()
        return told, kernel.stats(False)

    return ask


def _break(kernel: Kernel, executor: OnnxExecutor, plan: Plan) -> None:
    """Let the plan fail with a page number out of range, which is put right then."""
    table, entry = kernel.page_table, plan.sequences[0].row * kernel.columns
    right, table[entry] = table[entry], 10_000
    with pytest.raises(StepError):
        executor.execute(plan)
    table[entry] = right


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, EVERYTHING], ids=["greedy", "sampled", "everything"])
def test_guesses_change_nothing_alone(ask: Ask, sampling: Sampling) -> None:
    accepted = 0
    for task in TASKS[:3]:
        plain, _ = ask((task, sampling), guess=False)
        guessed, stats = ask((task, sampling), guess=True)
        assert guessed == plain
        assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
        accepted += stats.accepted_tokens
    assert accepted > 0


def test_guesses_change_nothing_in_a_batch(ask: Ask) -> None:
    asked = [*zip(TASKS, [GREEDY, SAMPLED, EVERYTHING, GREEDY], strict=True), (TASKS[2], replace(SAMPLED, n=3))]
    plain, _ = ask(*asked, guess=False)
    guessed, stats = ask(*asked, guess=True)
    assert guessed == plain
    assert len(plain) == 7
    assert stats.accepted_tokens > 20


def test_guesses_change_nothing_across_preemption(ask: Ask) -> None:
    asked = [(TASKS[0], EVERYTHING), (TASKS[1], SAMPLED), (TASKS[2], GREEDY)]
    plain, _ = ask(*asked, guess=False)
    guessed, stats = ask(*asked, guess=True, pages=11)
    assert guessed == plain
    assert stats.preemptions > 0 < stats.accepted_tokens


def test_a_failed_step_with_guesses_can_be_executed_again(ask: Ask) -> None:
    plain, _ = ask((TASKS[2], EVERYTHING), guess=False)
    guessed, stats = ask((TASKS[2], EVERYTHING), guess=True, failing=True)
    assert guessed == plain
    assert stats.accepted_tokens > 0


def test_what_ends_among_guesses_ends_there(ask: Ask) -> None:
    """By max_tokens, by a stop string and by the end of the text: nothing that follows is told or counted."""
    [(_, text, *_)] = ask((TASKS[0], GREEDY), guess=False)[0].values()
    ends = [replace(GREEDY, max_tokens=count) for count in (1, 2, 17)]
    ends += [replace(GREEDY, stop=(text[40:47],)), replace(GREEDY, max_tokens=60, ignore_eos=False)]
    for sampling in ends:
        plain, before = ask((TASKS[0], sampling), guess=False)
        guessed, after = ask((TASKS[0], sampling), guess=True)
        assert guessed == plain
        assert after.generated_tokens == before.generated_tokens
