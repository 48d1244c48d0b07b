"""Kernel, executor and swap file together on the real model: too small a pool changes no token."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from llmosd.application.blueprint import limits_of
from llmosd.config import Bytes, Config
from llmosd.errors import ConfigError
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import PagedModel, choose_backend
from llmosd.runtime.swap_file import SwapFile, slot_bytes
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.costs import ConstantPrefillCost, ConstantTransferCost, Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import Event, Evicted, EvictionMode, Output, RequestSpec, Restored, Sampling, SwapFailed

Kind = TypeVar("Kind", bound=Event)
Answers = dict[tuple[str, int], list[object]]
REQUESTS, POOL, PAGE_TOKENS, SLOTS = 64, 400, 16, 300
SUBJECTS = ["the sea", "an old map", "bread", "winter", "a clock that runs backwards", "Lisbon", "owls", "chess"]
PROMPT = "{} in three plain sentences, as if to a child who has never heard of it and asks a lot:"
# A full page is worth swapping, one with few tokens in it is not.
COSTS = Costs(ConstantPrefillCost(1e-3), ConstantTransferCost(6.5e-3))


def requests(tokenizer: Tokenizer) -> list[RequestSpec]:
    """Prompts of 4 to 19 tokens, answers of 50 to 96, two for some of them; each draws with a seed of its own."""
    specs = []
    for number in range(REQUESTS):
        prompt = tokenizer.encode(PROMPT.format(SUBJECTS[number % 8]), False)[: 4 + number % 16]
        sampling = Sampling(
            temperature=0.8,
            seed=number,
            max_tokens=50 + number * 5 % 47,
            n=2 if number % 16 == 3 else 1,
            logprobs=1,
            ignore_eos=True,
        )
        specs.append(RequestSpec(str(number), "m", prompt, sampling))
    return specs


@dataclass
class World:
    """A kernel and an executor over the model, with a pool and a swap file of their own."""

    model: PagedModel
    tokenizer: Tokenizer
    directory: Path
    pages: int
    eviction: EvictionMode = "auto"
    prefixes: bytes | None = None
    events: list[Event] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        limits = Limits(64, 64, 100, 256, PAGE_TOKENS, self.pages, SLOTS)
        self.kernel = Kernel(limits, POLICIES["fcfs"](), None, self.prefixes, eviction=self.eviction, costs=COSTS)
        assert self.model.page_bytes
        self.file = SwapFile(self.directory, SLOTS, self.model.page_bytes.size)
        self.transfers = PageTransfers(self.model.page_bytes, self.file)
        self.executor = OnnxExecutor(
            self.model, self.tokenizer, self.kernel.page_table, self.kernel.columns, self.transfers
        )

    def step(self) -> None:
        plan = self.kernel.plan(time.monotonic_ns())
        assert plan is not None
        self.events += self.kernel.commit(plan, self.executor.execute(plan), time.monotonic_ns())
        self.steps += 1

    def run(self, after_step: Callable[[], None] = lambda: None) -> Answers:
        """Tokens and their log probabilities by choice, of all requests, within the bound on steps."""
        specs = requests(self.tokenizer)
        for spec in specs:
            self.kernel.submit(spec, time.monotonic_ns())
        while not self.kernel.idle:
            self.step()
            assert self.steps <= self.step_bound(specs), "no progress"
            after_step()
        self.kernel.check()
        stats = self.kernel.stats(False)
        assert (stats.finished, stats.pages_used, stats.swap_slots_used) == (REQUESTS, 0, 0)
        said: Answers = {}
        for event in self.of(Output):
            said.setdefault((event.id, event.choice), []).extend(zip(event.tokens, event.logprobs, strict=True))
        for spec in specs:
            for choice in range(spec.sampling.n):
                assert len(said[spec.id, choice]) == spec.sampling.max_tokens
        return said

    def step_bound(self, specs: list[RequestSpec]) -> int:
        """Every step feeds a token or ends a transfer.

        Between two evictions a request feeds its whole length at most, for each choice, and an eviction moves each of
        its pages out once and in once. That evictions are few has a bound as well: a token gained pays for each.
        """
        evictions = Counter(event.id for event in self.of(Evicted))
        bound = 0
        for spec in specs:
            times, choices, answer = evictions[spec.id], spec.sampling.n, spec.sampling.max_tokens
            assert times <= choices * answer
            length = len(spec.prompt) + answer
            bound += choices * ((1 + times) * length + 2 * times * pages(length))
        return bound

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]


def pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


Make = Callable[..., World]


@pytest.fixture(scope="module")
def paged(model: InstalledModel) -> PagedModel:
    if choose_backend("auto", strict=False)[0] != "native":
        pytest.skip("bits are compared, which needs the native operators")
    ensure_graph(model, "native", "file", lambda stage, done, total: None)
    return PagedModel.load(
        model, backend="native", weights="file", pages=POOL, page_tokens=PAGE_TOKENS, threads=2, spin=False, strict=True
    )


@pytest.fixture(scope="module")
def tokenizer(model: InstalledModel) -> Tokenizer:
    return model.load_tokenizer()


@pytest.fixture
def make(paged: PagedModel, tokenizer: Tokenizer, tmp_path: Path) -> Iterator[Make]:
    made = list[World]()

    def world(pages: int, eviction: EvictionMode = "auto", prefixes: bytes | None = None) -> World:
        made.append(World(paged, tokenizer, tmp_path, pages, eviction, prefixes))
        return made[-1]

    yield world
    for one in made:
        one.transfers.close()


EXPECTED: Answers = {}


def unlimited(make: Make) -> tuple[Answers, int]:
    """What is said with pages for all, and a quarter of the pages that all answers take."""
    world = make(pages=POOL)
    if not EXPECTED:
        EXPECTED.update(world.run())
        assert not world.of(Evicted)
    return EXPECTED, sum(
        spec.sampling.n * pages(len(spec.prompt) + spec.sampling.max_tokens) for spec in requests(world.tokenizer)
    ) // 4


@pytest.mark.parametrize(
    ("eviction", "prefixes"),
    [("recompute", None), ("swap", b"a secret"), ("auto", b"a secret")],
)
def test_64_requests_in_a_quarter_of_the_pages_get_the_same_answers(
    make: Make, eviction: EvictionMode, prefixes: bytes | None
) -> None:
    """All end, within the bound on steps; to the bit, as in a pool without limit."""
    expected, quarter = unlimited(make)
    world = make(quarter, eviction, prefixes)
    assert world.run() == expected
    ways = Counter(event.way for event in world.of(Evicted))
    assert ways.total() >= 10
    assert set(ways) == ({"recompute", "swap"} if eviction == "auto" else {eviction})
    stats = world.kernel.stats(False)
    assert (stats.swap_outs > 0) == (stats.swap_ins > 0) == ("swap" in ways)
    assert stats.swap_failures == 0
    assert all(event.took_s > 0 for event in world.of(Restored) if event.way == "swap")


def test_a_bad_disk_costs_recomputation_and_changes_nothing(make: Make) -> None:
    """A bit of every slot is flipped after each step, and after six evictions the disk is full."""
    expected, quarter = unlimited(make)
    world = make(quarter, "swap")

    def damage() -> None:
        if len(world.of(Evicted)) < 6:
            flip(world.file, slot_bytes(world.file.page_bytes), world.steps % 8)
        else:
            full = os.open("/dev/full", os.O_RDWR)
            os.dup2(full, world.file.fileno())
            os.close(full)

    assert world.run(damage) == expected
    errors = {event.error for event in world.of(SwapFailed)}
    assert "No space left on device" in errors
    assert any("other bytes" in error for error in errors)
    assert world.kernel.stats(False).recomputed_tokens > 0


def flip(file: SwapFile, size: int, bit: int) -> None:
    with open(f"/proc/self/fd/{file.fileno()}", "r+b", buffering=0) as other:  # noqa: PTH123 - it has no other name
        for slot in range(SLOTS):
            byte = os.pread(other.fileno(), 1, slot * size)
            os.pwrite(other.fileno(), bytes([byte[0] ^ 1 << bit]), slot * size)


SMALL = Geometry(4, 96, 3, 2, 64, 160, 300, 4096, 500.0, 1e-6, None, ())


def test_the_setting_gives_the_slots(tmp_path: Path) -> None:
    config = Config(home=tmp_path, swap=Bytes(10_000_000), kv_format="float16", page_tokens=16, pages=10)
    page = 2 * 4 * 2 * 64 * 16 * 2
    assert limits_of(config, SMALL, "native").swap_slots == 10_000_000 // page
    assert limits_of(replace(config, swap=Bytes(0)), SMALL, "native").swap_slots == 0
    most = limits_of(replace(config, swap=Bytes(1 << 60)), SMALL, "native").swap_slots
    assert 0 < most * page <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    with pytest.raises(ConfigError, match=r"no swap file in .*nowhere: No such file or directory"):
        limits_of(replace(config, swap_directory=tmp_path / "nowhere"), SMALL, "native")
