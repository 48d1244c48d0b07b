"""Page-outs and page-ins between a real pool and a real file, and beside a real model."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmosd.errors import StepError
from llmosd.runtime.distribution import Row
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.importer import ensure_graph
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_bytes import Bytes
from llmosd.runtime.page_pool import HostPool, bytes_per_page
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import PagedModel, choose_backend
from llmosd.runtime.swap_file import SwapFile, slot_bytes
from llmosd.types import (
    KvFormat,
    PageCopy,
    PageTransfer,
    Plan,
    Sampling,
    SequencePlan,
    SequenceStart,
    StepResult,
    TokenLogprob,
    TransferDone,
)
from tests.runtime.stepping import poison

SMALL = Geometry(3, 96, 3, 2, 24, 160, 300, 256, 500.0, 1e-6, None, ())
PAGES, SLOTS = 12, 16


class Swapped:
    """A pool of random pages with a swap file."""

    def __init__(self, directory: Path, kv_format: KvFormat) -> None:
        self.pool = HostPool(SMALL, pages=PAGES, page_tokens=16, kv_format=kv_format)
        self.file = SwapFile(directory, SLOTS, self.pool.bytes.size)
        self.transfers = PageTransfers(self.pool.bytes, self.file)
        draw = np.random.default_rng(0)
        for _, values in self.pool.inputs():
            values.view(np.uint8)[:] = draw.integers(0, 256, values.view(np.uint8).shape, np.uint8)
        self._step = 0

    def plan(self, outs: list[tuple[int, int]] = [], ins: list[tuple[int, int]] = []) -> Plan:  # noqa: B006
        """A step without sequences; pairs of page and slot."""
        self._step += 1
        sets = [tuple(PageTransfer(page, slot) for page, slot in pairs) for pairs in (outs, ins)]
        return Plan(self._step, (), page_outs=sets[0], page_ins=sets[1])

    def move(self, outs: list[tuple[int, int]] = [], ins: list[tuple[int, int]] = []) -> list[TransferDone]:  # noqa: B006
        self.transfers.start(self.plan(outs, ins))
        return self.all()

    def all(self) -> list[TransferDone]:
        done = list[TransferDone]()
        while some := self.transfers.finished(at_least_one=True):
            done += some
        return done

    def page(self, number: int) -> list[bytes]:
        return [values[number].tobytes() for _, values in self.pool.inputs()]


@pytest.fixture
def swapped(tmp_path: Path) -> Iterator[Callable[..., Swapped]]:
    made = list[Swapped]()

    def make(kv_format: KvFormat = "float16") -> Swapped:
        made.append(Swapped(tmp_path, kv_format))
        return made[-1]

    yield make
    for one in made:
        one.transfers.close()


def test_a_wait_for_a_transfer_can_be_interrupted(swapped: Callable[..., Swapped]) -> None:
    one, gate = swapped(), threading.Event()
    write = one.file.write

    def held_up(slot: int, buffer: Bytes) -> None:
        assert gate.wait(30)
        write(slot, buffer)

    one.file.write = held_up  # type: ignore[method-assign]
    one.transfers.start(one.plan(outs=[(1, 2)]))
    for _ in range(3):  # however often, before the wait or within it
        one.transfers.interrupt()
        one.transfers.interrupt()
        assert one.transfers.finished(at_least_one=True) == ()
    later = threading.Timer(0.05, one.transfers.interrupt)
    later.start()
    assert one.transfers.finished(at_least_one=True) == ()
    later.join()
    one.transfers.interrupt()
    assert one.transfers.finished(at_least_one=False) == ()
    gate.set()
    assert [done.transfer for done in one.transfers.finished(at_least_one=True)] == [PageTransfer(1, 2)]


@pytest.mark.parametrize("kv_format", ["float16", "float32", "int8"])
def test_pages_go_out_and_come_back_elsewhere_bit_for_bit(swapped: Callable[..., Swapped], kv_format: KvFormat) -> None:
    world = swapped(kv_format)
    assert world.pool.bytes.size == bytes_per_page(SMALL, 16, kv_format)
    before = [world.page(number) for number in range(PAGES)]
    done = world.move(outs=[(page, 15 - page) for page in range(6)])
    assert sorted(one.transfer.page for one in done) == list(range(6))
    assert all(one.ns >= 0 and one.error is None and not one.inward for one in done)
    for page in range(6):
        assert world.page(page) == before[page], "going out changes nothing"
    done = world.move(ins=[(11 - page, 15 - page) for page in range(6)])
    assert all(one.inward and one.error is None for one in done)
    for page in range(6):
        assert world.page(page) == world.page(11 - page) == before[page]


def test_each_transfer_is_started_and_told_once(swapped: Callable[..., Swapped]) -> None:
    world = swapped()
    plan = world.plan(outs=[(0, 0), (1, 1)])
    for _ in range(3):
        world.transfers.start(plan)
    assert {one.transfer for one in world.all()} == set(plan.page_outs)
    world.transfers.start(plan)
    assert world.transfers.finished(at_least_one=True) == ()


def test_a_transfer_that_fails_says_why_and_nothing_else_notices(swapped: Callable[..., Swapped]) -> None:
    world = swapped()
    before = [world.page(number) for number in range(PAGES)]
    world.move(outs=[(0, 0), (1, 1), (2, 2)])
    with open(f"/proc/self/fd/{world.file.fileno()}", "r+b", buffering=0) as file:  # noqa: PTH123
        os.pwrite(file.fileno(), b"scribble", slot_bytes(world.pool.bytes.size) + 1000)
    done = {one.transfer.slot: one.error for one in world.move(ins=[(6, 0), (7, 1), (8, 2), (9, 9)])}
    assert done == {0: None, 1: "slot 1 holds other bytes than were written", 2: None, 9: "slot 9 holds nothing"}
    assert [world.page(number) for number in (6, 8)] == [before[0], before[2]]
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, world.file.fileno())
    os.close(full)
    assert {one.error for one in world.move(outs=[(0, 5), (1, 6)])} == {"No space left on device"}
    assert [world.page(number) for number in range(6)] == before[:6]


# ---------------------------------------------------------------- beside the real model

PAGE_TOKENS, COLUMNS = 16, 8
SAMPLING = Sampling(temperature=0.0, max_tokens=40, logprobs=3, ignore_eos=True)
FIRST, SECOND = "In 1969 two men walked on the Moon. Their names were Neil Armstrong and Buzz Aldrin. The", "The sea is"


class Desk:
    """An executor over the real model, with plans written by hand."""

    def __init__(self, model: InstalledModel, directory: Path) -> None:
        self.model = PagedModel.load(
            model,
            backend="native",
            weights="file",
            pages=32,
            page_tokens=PAGE_TOKENS,
            threads=2,
            spin=False,
            strict=True,
        )
        assert self.model.page_bytes is not None
        self.transfers = PageTransfers(self.model.page_bytes, SwapFile(directory, SLOTS, self.model.page_bytes.size))
        self.table = array("i", [-1]) * (2 * COLUMNS)
        self.tokenizer = model.load_tokenizer()
        self.executor = OnnxExecutor(self.model, self.tokenizer, self.table, COLUMNS, self.transfers)
        self.steps = 0
        self.fed = dict[int, int]()
        self.tokens = dict[int, list[int]]()
        self.logprobs = dict[int, list[TokenLogprob]]()
        self.moved = list[TransferDone]()

    def meet(self, sequence: int, prompt: str, pages: list[int]) -> None:
        self.tokens[sequence] = self.tokenizer.encode(prompt, False)
        self.fed[sequence], self.logprobs[sequence] = 0, []
        self.place(sequence, pages)

    def place(self, sequence: int, pages: list[int]) -> None:
        self.table[sequence * COLUMNS : sequence * COLUMNS + len(pages)] = array("i", pages)

    def plan(self, *sequences: int, **others: Any) -> Plan:
        """All tokens that a sequence has and has not fed yet."""
        self.steps += 1
        parts = [
            SequencePlan(one, one, self.tokens[one][self.fed[one] :], self.fed[one], sample=True) for one in sequences
        ]
        new = [part for part in parts if not part.past]
        started = [SequenceStart(part.sequence, 0, part.tokens, SAMPLING) for part in new]
        return Plan(self.steps, tuple(parts), started=tuple(started), **others)

    def take(self, plan: Plan, result: StepResult) -> None:
        for part, outcome in zip(plan.sequences, result.sequences, strict=True):
            self.fed[part.sequence] += len(part.tokens)
            self.tokens[part.sequence] += outcome.tokens
            self.logprobs[part.sequence] += outcome.logprobs
        self.moved += result.transfers

    def step(self, *sequences: int, **others: Any) -> StepResult:
        plan = self.plan(*sequences, **others)
        result = self.executor.execute(plan)
        self.take(plan, result)
        return result

    def until_moved(self, count: int) -> None:
        while len(self.moved) < count:
            assert self.step().transfers, "a step without sequences waits for a transfer"


@pytest.fixture
def desk(model: InstalledModel, tmp_path: Path) -> Iterator[Desk]:
    if choose_backend("auto", strict=False)[0] != "native":
        pytest.skip("bits are compared, which needs the native operators")
    ensure_graph(model, "native", "file", lambda stage, done, total: None)
    desk = Desk(model, tmp_path)
    yield desk
    desk.transfers.close()


def undisturbed(desk: Desk, prompt: str, steps: int) -> tuple[list[int], list[TokenLogprob]]:
    desk.meet(0, prompt, list(range(20, 20 + COLUMNS)))
    for _ in range(steps):
        desk.step(0)
    return desk.tokens[0], desk.logprobs[0]


def test_a_sequence_goes_on_from_pages_that_were_swapped(desk: Desk) -> None:
    """Out beside another's step, all memory scribbled over, in to other pages, and on: every bit is the same."""
    expected = undisturbed(desk, FIRST, 30)
    desk.meet(0, FIRST, [0, 1, 2, 3])
    desk.meet(1, SECOND, [30, 31])
    for _ in range(12):
        desk.step(0)
    used = -(-desk.fed[0] // PAGE_TOKENS)
    assert used >= 2
    desk.step(1, page_outs=tuple(PageTransfer(page, 10 - page) for page in range(used)))
    desk.step(1)
    desk.until_moved(used)
    poison(desk.model)
    desk.step(page_ins=tuple(PageTransfer(9 - page, 10 - page) for page in range(used)))
    desk.until_moved(2 * used)
    assert [one.error for one in desk.moved] == [None] * 2 * used
    desk.place(0, [9 - page for page in range(COLUMNS)])
    for _ in range(18):
        desk.step(0)
    assert (desk.tokens[0], desk.logprobs[0]) == expected


def test_copies_come_before_page_outs_and_outgoing_pages_may_be_read(desk: Desk) -> None:
    """Page 0 is copied to 5, which goes out while the sequence reads page 0 and writes to the next."""
    expected = undisturbed(desk, FIRST, 4)
    desk.meet(0, FIRST, [0, 1, 2, 3])
    desk.step(0)
    outs = (PageTransfer(5, 0), PageTransfer(0, 1))
    desk.step(0, copies=(PageCopy(0, 5),), page_outs=outs)
    desk.until_moved(2)
    for keys in desk.model.keys:
        keys[[0, 5]] = np.nan
    desk.step(page_ins=(PageTransfer(7, 0), PageTransfer(8, 1)))
    desk.until_moved(4)
    assert all(np.array_equal(array[7], array[8]) for array in (*desk.model.keys, *desk.model.values))
    desk.place(0, [7])
    for _ in range(2):
        desk.step(0)
    assert (desk.tokens[0], desk.logprobs[0]) == expected


class FailsOnce:
    """The real model, whose next run fails."""

    def __init__(self, model: PagedModel) -> None:
        self.failures = 1
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def run(self, *inputs: Any) -> Row:
        if self.failures:
            self.failures -= 1
            raise StepError("broken on purpose")
        return self._model.run(*inputs)


def test_what_ends_beside_a_failed_step_is_told_by_the_next(desk: Desk) -> None:
    broken: Any = FailsOnce(desk.model)
    executor = OnnxExecutor(broken, desk.tokenizer, desk.table, COLUMNS, desk.transfers)
    desk.meet(0, FIRST, [0, 1, 2, 3])
    plan = desk.plan(0, page_outs=(PageTransfer(20, 0), PageTransfer(21, 1)))
    with pytest.raises(StepError, match="on purpose"):
        executor.execute(plan)
    desk.take(plan, executor.execute(plan))
    desk.executor = executor
    desk.until_moved(2)
    assert {one.transfer for one in desk.moved} == set(plan.page_outs)
    assert desk.step().transfers == (), "nothing was started twice"


def test_a_step_without_sequences_tells_that_it_waits(desk: Desk) -> None:
    called = list[int]()
    plan = desk.plan(page_outs=(PageTransfer(20, 0),))
    assert len(desk.executor.execute(plan, lambda: called.append(1)).transfers) == 1
    assert called == [1]
