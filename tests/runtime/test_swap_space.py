"""Kernel, executor and swap file together on the real model: too small a pool changes no token."""

from __future__ import annotations

import os
import time
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
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.types import Ended, Event, Evicted, EvictionMode, Output, RequestSpec, Restored, Sampling, SwapFailed

Kind = TypeVar("Kind", bound=Event)
PAGE_TOKENS, SLOTS = 16, 120
SUBJECTS = ["the sea", "an old map", "bread", "winter", "a clock that runs backwards", "Lisbon", "owls", "chess"]
PROMPT = "Write three plain sentences about {}, as if to a child who has never heard of it and asks a lot:"
SAMPLING = Sampling(temperature=0.8, seed=7, max_tokens=48, logprobs=1, ignore_eos=True)


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

    def __post_init__(self) -> None:
        limits = Limits(6, 64, 100, 256, PAGE_TOKENS, self.pages, SLOTS)
        self.kernel = Kernel(limits, POLICIES["fcfs"](), None, self.prefixes, eviction=self.eviction)
        assert self.model.page_bytes
        self.file = SwapFile(self.directory, SLOTS, self.model.page_bytes.size)
        self.transfers = PageTransfers(self.model.page_bytes, self.file)
        self.executor = OnnxExecutor(
            self.model, self.tokenizer, self.kernel.page_table, self.kernel.columns, self.transfers
        )

    def submit(self) -> None:
        for number, subject in enumerate(SUBJECTS):
            prompt = self.tokenizer.encode(PROMPT.format(subject), False)
            sampling = replace(SAMPLING, n=2 if number == 3 else 1)
            self.kernel.submit(RequestSpec(str(number), "m", prompt, sampling), time.monotonic_ns())

    def step(self) -> None:
        plan = self.kernel.plan(time.monotonic_ns())
        assert plan is not None
        self.events += self.kernel.commit(plan, self.executor.execute(plan), time.monotonic_ns())

    def finish(self) -> None:
        while not self.kernel.idle:
            self.step()
        self.kernel.check()
        stats = self.kernel.stats(False)
        assert (stats.pages_used, stats.swap_slots_used) == (0, 0)
        assert all(event.request.error is None for event in self.of(Ended))
        assert len(self.of(Ended)) == len(SUBJECTS)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def told(self) -> dict[tuple[str, int], list[object]]:
        """Tokens and their log probabilities by choice."""
        said: dict[tuple[str, int], list[object]] = {}
        for event in self.of(Output):
            said.setdefault((event.id, event.choice), []).extend(zip(event.tokens, event.logprobs, strict=True))
        return said


Make = Callable[..., World]


@pytest.fixture(scope="module")
def paged(model: InstalledModel) -> PagedModel:
    if choose_backend("auto", strict=False)[0] != "native":
        pytest.skip("bits are compared, which needs the native operators")
    ensure_graph(model, "native", "file", lambda stage, done, total: None)
    return PagedModel.load(
        model, backend="native", weights="file", pages=100, page_tokens=PAGE_TOKENS, threads=2, spin=False
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


EXPECTED: dict[tuple[str, int], list[object]] = {}


def unlimited(make: Make) -> tuple[dict[tuple[str, int], list[object]], int]:
    """What is said with pages for all, and a quarter of the pages that this takes."""
    world = make(pages=100)
    if not EXPECTED:
        world.submit()
        world.finish()
        assert not world.of(Evicted)
        EXPECTED.update(world.told())
    longest = len(world.tokenizer.encode(PROMPT.format(SUBJECTS[4]), False)) + 48
    return EXPECTED, (len(SUBJECTS) + 1) * -(-longest // PAGE_TOKENS) // 4


@pytest.mark.parametrize("prefixes", [None, b"a secret"], ids=["", "with the prefix cache"])
@pytest.mark.parametrize("eviction", ["recompute", "swap", "auto"])
def test_a_quarter_of_the_pages_gives_the_same_answers(
    make: Make, eviction: EvictionMode, prefixes: bytes | None
) -> None:
    expected, quarter = unlimited(make)
    world = make(quarter, eviction, prefixes)
    world.submit()
    world.finish()
    assert world.told() == expected
    ways = {event.way for event in world.of(Evicted)}
    assert ways and (eviction == "auto" or ways == {eviction})
    stats = world.kernel.stats(False)
    assert (stats.swap_outs > 0) == ("swap" in ways)
    assert stats.swap_failures == 0
    assert all(event.took_s > 0 for event in world.of(Restored) if event.way == "swap")


def test_a_bad_disk_costs_recomputation_and_changes_nothing(make: Make) -> None:
    """A bit of every slot is flipped after each step, and later the disk is full."""
    expected, quarter = unlimited(make)
    world = make(quarter, "swap")
    size, steps = slot_bytes(world.file.page_bytes), 0
    world.submit()
    while not world.kernel.idle:
        world.step()
        steps += 1
        if steps < 60:
            flip(world.file, size, steps % 8)
        if steps == 60:
            full = os.open("/dev/full", os.O_RDWR)
            os.dup2(full, world.file.fileno())
            os.close(full)
    world.finish()
    assert world.told() == expected
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
