"""A kernel with the symbolic executor and the oracle around it: every step in it is checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from llmosd.errors import StepError
from llmosd.system.costs import Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.system.snapshot import KeptPages
from llmosd.system.speculation import Speculation
from llmosd.types import (
    STANDING,
    UNLIMITED,
    Event,
    EvictionMode,
    Plan,
    PolicyChanged,
    Quotas,
    RequestSpec,
    Sampling,
    State,
)
from tests.system.oracle import Oracle
from tests.system.symbolic import SymbolicExecutor


def make_limits(
    *,
    slots: int = 4,
    token_budget: int = 16,
    queue_limit: int = 100,
    context: int = 64,
    page_tokens: int = 4,
    pages: int = 64,
    swap_slots: int = 0,
    queue_tokens: int = 0,
    queue_timeout: int = 0,
) -> Limits:
    sizes = slots, token_budget, queue_limit, context, page_tokens, pages
    return Limits(*sizes, swap_slots, queue_tokens, queue_timeout)


class World:
    """Time moves by `took` each step. Requests are named r0, r1, … in the order of submission."""

    def __init__(
        self,
        limits: Limits | None = None,
        policy: str = "fcfs",
        speculation: Speculation | None = None,
        *,
        prefixes: bool = False,
        quotas: Quotas = UNLIMITED,
        eviction: EvictionMode = "auto",
        costs: Costs | None = None,
    ) -> None:
        self.limits = limits or make_limits()
        self._parts = policy, speculation, prefixes, eviction, costs
        self.oracle = Oracle(policy, quotas)
        self.page_ns: Counter[str] = Counter()  # by request
        self.now = 0
        self.submitted = 0
        self.prefixes = prefixes
        self.parked = 0  # request·steps
        self.planted = 0  # pages that a restart brought along
        self._disk: dict[str, Any] = {}
        self._boot()

    def disk(self, **settings: Any) -> None:
        """How the swap file behaves (`SymbolicSwap`), before anything is swapped."""
        self._disk = settings
        self.executor.disk(**settings)

    def _boot(self) -> None:
        policy, speculation, prefixes, eviction, costs = self._parts
        self.kernel = Kernel(
            self.limits,
            POLICIES[policy](),
            speculation,
            b"a secret" if prefixes else None,
            quotas=self.oracle.quotas,
            eviction=eviction,
            costs=costs,
        )
        self.executor = SymbolicExecutor(self.kernel)
        self.executor.disk(**self._disk)
        lives = self.oracle.lives.values()
        self._preempted_before = sum(life.preemptions for life in lives)
        self._generated_before = sum(len(tokens) for life in lives for tokens in life.tokens.values())
        self.page_ns = Counter({id: self.page_ns[id] for id in self.oracle.lives})
        self._page_ns_before = self.page_ns.total()

    def submit(
        self,
        prompt: int | list[int],
        max_tokens: int | None = 8,
        *,
        n: int = 1,
        nice: int = 0,
        ignore_eos: bool = True,
        age: int = 0,
        salt: str = "",
        user: str = "",
        batch: bool = False,
        deadline: int | None = None,
    ) -> str:
        """Submit a prompt, given or of so many tokens; the request's id."""
        id = f"r{self.submitted}"
        self.submitted += 1
        tokens = [(7 * i + self.submitted) % 12 for i in range(prompt)] if isinstance(prompt, int) else prompt
        sampling = Sampling(max_tokens=max_tokens, n=n, ignore_eos=ignore_eos)
        spec = RequestSpec(
            id,
            "m",
            tokens,
            sampling,
            user=user,
            nice=nice,
            arrived=self.now - age,
            cache_salt=salt,
            service_class="batch" if batch else "interactive",
            deadline=deadline,
        )
        self.oracle.submitted(spec, self.kernel.submit(spec, self.now), self.now)
        return id

    def wait(self, took: int) -> None:
        """Time passes between two steps."""
        self._count_pages(took)
        self.now += took

    def expire(self) -> list[Event]:
        """Give up those whose time is over."""
        events = self.kernel.expire(self.now)
        self.oracle.follow(events)
        return events

    def cancel(self, id: str) -> None:
        used, view = self.kernel.stats(False).pages_used, self.kernel.view(id)
        self.oracle.follow(self.kernel.cancel(id, "a person", self.now))
        freed = used - self.kernel.stats(False).pages_used
        assert 0 <= freed <= view.pages + view.swapped_pages, "a cancelled request frees more than it held"
        self.kernel.check()

    def suspend(self, id: str) -> None:
        view, events = self.kernel.suspend(id, self.now)
        self.oracle.follow(events)
        assert (view.state, view.pages, view.position) == (State.SUSPENDED, 0, None)
        assert self.kernel.suspend(id, self.now) == (view, []), "it is suspended already"
        self.kernel.check()

    def resume(self, id: str) -> None:
        view, events = self.kernel.resume(id, self.now)
        self.oracle.follow(events)
        self._find_queue()
        assert view.state is not State.SUSPENDED
        assert self.kernel.resume(id, self.now) == (view, []), "it is not suspended any more"
        self.kernel.check()

    def pause(self, id: str) -> None:
        before = self.kernel.view(id)
        events = self.kernel.pause(id, self.now)
        self.oracle.follow(events)
        self._find_queue()
        view = self.kernel.view(id)
        begun = before.state not in (State.QUEUED, *STANDING)
        assert bool(events) == begun, "it stands still exactly if it has begun and did not yet"
        assert view.state is (State.PAUSED if begun else before.state)
        assert not begun or (view.pages, view.position) == (0, None)
        assert self.kernel.pause(id, self.now) == [], "it stands still already"
        self.kernel.check()

    def unpause(self, id: str) -> None:
        paused = self.kernel.view(id).state is State.PAUSED
        events = self.kernel.unpause(id, self.now)
        self.oracle.follow(events)
        self._find_queue()
        assert bool(events) == paused, "only who is paused goes on"
        assert self.kernel.view(id).state is not State.PAUSED
        assert self.kernel.unpause(id, self.now) == []
        self.kernel.check()

    def restart(self, down: int, starts_at: int) -> None:
        """All live requests go to a new kernel as snapshots and wait there, suspended; who has ended is forgotten.

        The new kernel's clock says `starts_at` when `down` has passed since the old one stopped.
        """
        for id in self.oracle.live:
            if self.state(id) is not State.SUSPENDED:
                self.suspend(id)
        snapshots = [self.kernel.snapshot(id, self.now) for id in self.oracle.live]
        kept = {id: self._read_pages(id) for id in self.oracle.live}
        assert [snapshot.times for snapshot in snapshots] == [self.kernel.view(s.id).times for s in snapshots]
        self.oracle.restarted(starts_at - down - self.now)
        self.now = starts_at
        self._boot()
        for snapshot in snapshots:
            arrived = starts_at - down - snapshot.age
            self.oracle.restored(snapshot.id, self.kernel.restore(snapshot, arrived, self.now))
            self.kernel.check()
            times = replace(snapshot.times, other=snapshot.times.other + down)
            self._write_pages(snapshot.id, *kept[snapshot.id])
            self.kernel.check()
            again = self.kernel.snapshot(snapshot.id, self.now)
            assert again.timeline[-2:] == (("down", snapshot.age), ("suspended", snapshot.age + down))
            again = replace(again, timeline=snapshot.timeline)
            deadline = snapshot.spec.deadline
            if deadline is not None:
                deadline += arrived - snapshot.spec.arrived
            spec = replace(snapshot.spec, arrived=arrived, deadline=deadline)
            assert again == replace(snapshot, spec=spec, times=times)

    def _read_pages(self, id: str) -> tuple[KeptPages, list[list[int]]]:
        kept, pages = self.kernel.kept(id)
        return kept, [list(self.executor.pages[page]) for page in pages]

    def _write_pages(self, id: str, kept: KeptPages, contents: list[list[int]]) -> None:
        for number, page in self.kernel.plant(id, kept):
            self.executor.pages[page] = list(contents[number])
            self.planted += 1

    def renice(self, id: str, nice: int) -> None:
        assert self.kernel.renice(id, nice, self.now).nice == nice
        self.oracle.lives[id].nice = nice
        self.kernel.check()

    def set_policy(self, name: str) -> None:
        old = self.kernel.policy.name
        events = self.kernel.set_policy(name, self.now)
        assert events == ([] if name == old else [PolicyChanged("", old, name, "a person", self.now)])
        self.oracle.policy = name
        self._parts = (name, *self._parts[1:])
        self.kernel.check()

    def resize(self, pages: int) -> None:
        """As many pages, or as many as the most demanding request needs; what lies beyond is lost."""
        self.executor.shrink(self.kernel.resize(max(pages, self.kernel.floor)), self.kernel.pool.extent)
        self.kernel.check()

    def evacuate(self) -> None:
        """Take all memory from the model; it waits without any until it is given some."""
        while self.kernel.promised:
            self.step(admit=False)
        self.oracle.follow(self.kernel.evacuate(self.now))
        self._find_queue()
        while self.kernel.transferring:
            self.step(admit=False)
        assert self.kernel.pool.used == 0
        assert self.kernel.resize(0) == ()
        assert self.kernel.pool.extent == 0
        self.executor.shrink((), 0)
        self.kernel.check()

    def step(self, took: int = 1, admit: bool = True) -> Plan | None:
        """One step; a broken one is executed again, as the engine does."""
        if self.kernel.floor > self.kernel.pool.total:
            self.resize(self.kernel.floor)
        self.expire()
        idle = self.kernel.idle
        plan = self.kernel.plan(self.now, admit)
        assert (plan is None) == idle
        if plan is None:
            assert not self.oracle.runnable, "work is there but nothing runs"
            return None
        self._count_pages(took)
        try:
            result = self.executor.execute(plan)
        except StepError:
            result = self.executor.execute(plan)
        self.now += took
        self.events: list[Event] = self.kernel.commit(plan, result, self.now)
        self._find_queue()
        self.oracle.follow(self.events)
        self.oracle.steps += bool(result.sequences or result.transfers)  # else it was interrupted
        self.kernel.check()
        self._check_views()
        self._check_memory()
        return plan

    def drain(self) -> None:
        """Let all go on and run to the end within the bound on steps; then nothing may be left behind."""
        for id in self.oracle.live:
            self.unpause(id)
            self.resume(id)
        while not self.kernel.idle:
            self.step()
            bound = self.oracle.step_bound(self.limits.page_tokens)
            assert self.oracle.steps <= bound, "no progress"
        assert not self.oracle.live
        stats = self.kernel.stats(True)
        assert self.kernel.idle
        assert (stats.pages_used, stats.running, stats.waiting, stats.requests) == (0, 0, 0, ())
        assert stats.swap_slots_used == 0
        assert (stats.swap_outs + stats.swap_ins, stats.swap_failures) == (
            self.executor.swap.done,
            self.executor.swap.failed,
        )
        finals = [life.final.state for life in self.oracle.lives.values()]
        ends = (State.FINISHED, State.CANCELLED, State.FAILED)
        assert (stats.finished, stats.cancelled, stats.failed) == tuple(map(finals.count, ends))
        assert stats.accepted == len(finals)
        assert stats.preemptions == self.preemptions - self._preempted_before
        generated = sum(life.final.completion_tokens for life in self.oracle.lives.values())
        assert stats.generated_tokens == generated - self._generated_before
        assert sum(usage.page_ns for usage in stats.users) == self.page_ns.total() - self._page_ns_before
        assert sum(usage.prefilled_tokens for usage in stats.users) == stats.prompt_tokens
        assert sum(usage.reused_tokens for usage in stats.users) == stats.reused_tokens
        assert sum(usage.generated_tokens for usage in stats.users) == stats.generated_tokens

    @property
    def preemptions(self) -> int:
        return sum(life.preemptions for life in self.oracle.lives.values())

    def state(self, id: str) -> State:
        return self.oracle.lives[id].state

    def _count_pages(self, took: int) -> None:
        """Pages change when a step is planned or committed: what is held in between is held for all of it."""
        self.parked += self.kernel.stats(False).parked
        held = Counter[str]()
        for view in self.kernel.views():
            held[view.user] += view.pages
            self.page_ns[view.id] += view.pages * took
        for user, pages in held.items():
            quota = self.oracle.quotas.of(user)
            most = min(quota.pages or self.limits.pages, max(1, int(quota.share * self.limits.pages)))
            assert pages <= most or most == self.limits.pages, f"{user} holds {pages} pages of {most}"

    def _check_memory(self) -> None:
        """Every place of the pool, looked at one by one."""
        [pool] = self.kernel.stats(True).pools
        table, size = self.kernel._table, self.limits.page_tokens
        places: dict[tuple[int, int], tuple[object, ...]] = {}  # (page, place in it) → what it holds
        used, ends = set[int](), dict[int, int]()
        arriving = set[int]()
        for request in self.kernel._scheduler.running:
            for sequence in request.live:
                if request.returning:
                    arriving |= {table.page(sequence.row, column) for column in range(table.pages(sequence.row))}
                    continue
                history = tuple(sequence.history(0, sequence.past))
                used |= {table.page(sequence.row, column) for column in range(table.pages(sequence.row))}
                for at in range(sequence.past):
                    places[table.page(sequence.row, at // size), at % size] = (request.salt, *history[: at + 1])
                if sequence.past % size:
                    ends[table.last_page(sequence.row)] = -sequence.past % size
        assert pool.used == len(used | arriving)
        assert pool.unfilled == len(used) * size - len(places) == sum(ends.values())
        twins = len(places) - len(set(places.values()))
        assert pool.duplicate == (twins if self.prefixes else None)
        count = Counter(pool.map)
        assert count["u"] + count["s"] + count["i"] == pool.used and count["s"] <= pool.shared
        assert (count["i"], count["o"], count["."]) == (pool.arriving, pool.leaving, pool.free)
        assert pool.map[: pool.total].count("c") == pool.cached

    def _find_queue(self) -> None:
        self.oracle.queue = {view.id for view in self.kernel.views() if view.position is not None}

    def _check_views(self) -> None:
        views = {view.id: view for view in self.kernel.views()}
        assert views.keys() == set(self.oracle.live)
        ranks = [self.oracle.rank(self.oracle.lives[id]) for id in views]
        assert not self.oracle.ordered or ranks == sorted(ranks)
        for id, view in views.items():
            life = self.oracle.lives[id]
            assert view == self.kernel.view(id)
            assert view.times.total == self.now - view.arrived
            assert view.page_ns == self.page_ns[id]
            assert not view.waits_for or view.position
            assert (view.state, view.nice, view.preemptions) == (life.state, life.nice, life.preemptions)
            assert view.completion_tokens == sum(map(len, life.tokens.values()))
