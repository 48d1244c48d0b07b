"""From a configuration to everything an engine is built of: model, backend, sizes."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from llmosd.application.image import Numerics
from llmosd.config import Config
from llmosd.errors import ConfigError
from llmosd.hardware import gpus, memory, processors
from llmosd.prediction.costs import FittedTransferCost
from llmosd.prediction.formulas import amdahl, fit_amdahl
from llmosd.prediction.itl_budget import ItlBudget
from llmosd.prediction.lengths import MedianLength
from llmosd.prediction.step_model import StepModel
from llmosd.runtime import importer, native, scaling
from llmosd.runtime.backend import LARGEST_PAGE, best_page_tokens
from llmosd.runtime.device import choose_device
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.fetch import Progress
from llmosd.runtime.footprint import Footprint, footprint
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_pool import bytes_per_page
from llmosd.runtime.page_transfers import THREADS, PageTransfers
from llmosd.runtime.paged_model import Backend, PagedModel, choose_backend, choose_kv_format, pages_that_fit
from llmosd.runtime.prices import measure
from llmosd.runtime.swap_file import SwapFile, slot_bytes
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.costs import Costs
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import Rules, named
from llmosd.system.residency import SECOND, ModelSize
from llmosd.system.speculation import Speculation
from llmosd.system.swap import SwapBudget, SwapSpace
from llmosd.types import KvFormat
from llmosd.wire import Amdahl

BROKEN_DISK_S = 1.0  # assumed for a page where the swap file cannot be used at the start


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory for models and daemon together (bytes), and what of it the daemon takes by itself."""

    total: int
    process: int

    @classmethod
    def of(cls, config: Config) -> Budget:
        """What was set, or most of what is free; to be asked before a model is loaded."""
        process = memory.resident() + memory.DAEMON_GROWTH
        return cls(int(config.memory) or process + memory.for_models(), process)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One model: how its kernel and executor are built."""

    config: Config  # as far as this model is concerned
    model: InstalledModel
    backend: Backend
    why: str  # this backend
    device: str  # and why
    threads: int
    limits: Limits
    amdahl: Amdahl
    size: ModelSize

    def kernel(self, swap: SwapBudget) -> tuple[Kernel, SwapFile | None]:
        """The kernel, with nothing loaded, and the file that its pages are swapped to, as far as `swap` has room.

        Raises ConfigError.
        """
        config, file, transfer_cost = self.config, *self._swap()
        steps = StepModel()
        together = native.rows_together(config.strict) if self.backend == "native" else 1
        budget = ItlBudget(steps, config.itl_target / 1e3 or None, together)
        costs = Costs(steps, transfer_cost, budget, MedianLength())
        kernel = Kernel(
            self.limits,
            named(config.policy, self._rules),
            Speculation() if config.speculation else None,
            self._prefixes() if config.prefix_cache else None,
            self.model.id,
            quotas=config.quotas,
            eviction=config.eviction,
            costs=costs,
            swap=SwapSpace(self.limits.swap_slots, slot_bytes(self.bytes_per_page), swap),
        )
        return kernel, file

    def executor(self, kernel: Kernel, file: SwapFile | None, tokenizer: Tokenizer) -> OnnxExecutor:
        """Load the model. On the thread that will own it; raises ModelError."""
        model = PagedModel.load(
            self.model,
            backend=self.backend,
            weights=self.config.weights,
            pages=self.limits.pages,
            page_tokens=self.limits.page_tokens,
            threads=self.threads,
            spin=self.config.spin,
            kv_format=self.kv_format,
            strict=self.config.strict,
        )
        prices = kernel.policy.rules.prices
        prices.prompt, prices.output = measure(model)
        transfers = None
        if file is not None:
            assert model.page_bytes is not None, "swap space for pages that are not in this process's memory"
            transfers = PageTransfers(model.page_bytes, file)
        return OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns, transfers)

    @property
    def _rules(self) -> Rules:
        config = self.config
        rules = Rules(starve_after=config.starve_after * 10**9, starve_share=config.starve_share / 100)
        itl = config.itl_target * 10**6 or rules.slo_itl
        return replace(rules, slo_ttft=config.ttft_target * 10**6, slo_itl=itl)

    def _swap(self) -> tuple[SwapFile | None, FittedTransferCost]:
        """The swap file, if there is to be one, and what a page costs on this disk."""
        if not self.limits.swap_slots:
            return None, FittedTransferCost()
        file = SwapFile(self.config.swap_home, self.limits.swap_slots, self.bytes_per_page)
        try:
            page_s = file.probe()
        except OSError:
            page_s = BROKEN_DISK_S
        return file, FittedTransferCost(page_s)

    def _prefixes(self) -> bytes:
        """What K and V depend on beside the tokens, and a secret, so that nobody can compute a page's key."""
        files, config = sorted(self.model.record.files.items()), self.config
        return secrets.token_bytes(32) + repr((files, config.weights, self.backend, self.kv_format)).encode()

    @property
    def numerics(self) -> Numerics:
        record, config = self.model.record, self.config
        return Numerics(record.id, record.files, record.geometry, config.weights, self.backend, self.kv_format)

    @property
    def bytes_per_page(self) -> int:
        return bytes_per_page(self.model.geometry, self.limits.page_tokens, self.kv_format)

    @property
    def kv_format(self) -> KvFormat:
        return choose_kv_format(self.backend, self.config.kv_format)


def draw(config: Config, model: InstalledModel, progress: Progress, budget: Budget, pinned: int = 0) -> Blueprint:
    """Of the default model. Blocking: builds the graph and times the threads where that is still to do.

    `pinned` bytes of the budget belong to other models. Raises ConfigError, ModelError.
    """
    plan = draw_other(config, model, progress, budget, pinned)
    if plan.backend == "cuda":
        return plan
    return replace(plan, amdahl=measured_amdahl(model, plan.backend, processors.usable_cores(), progress))


def draw_other(config: Config, model: InstalledModel, progress: Progress, budget: Budget, pinned: int = 0) -> Blueprint:
    """As `draw`, without timing anything."""
    backend, why, device = _place(config)
    graph = importer.ensure_graph(model, backend, config.weights, progress)
    cuda = backend == "cuda"
    fixed = Footprint(0, 0, 0, 0) if cuda else _footprint(config, model, backend, graph)
    room = None if cuda else budget.total - budget.process - pinned - fixed.total
    limits = limits_of(config, model.geometry, backend, room)
    page = bytes_per_page(model.geometry, limits.page_tokens, choose_kv_format(backend, config.kv_format))
    size = ModelSize(
        weights=fixed.weights,
        workspace=fixed.workspace,
        page=0 if cuda else page,
        least=min(limits.columns, limits.pages),
        swap=swap_buffers(limits.swap_slots, page),
    )
    threads = config.threads or (1 if cuda else processors.usable_cores())
    unmeasured = Amdahl(why="steps run on the GPU" if cuda else "not measured")
    return Blueprint(config, model, backend, why, device, threads, limits, unmeasured, size)


def config_of(config: Config, model: InstalledModel) -> Config:
    """As far as another model than the default one is concerned: sizes that were set for that one are its own."""
    if model.id == config.model:
        return config
    context = min(config.context, model.geometry.context)
    return replace(config, model=model.id, pages=0, context=context, page_tokens=model.record.page_tokens)


def _footprint(config: Config, model: InstalledModel, backend: Backend, graph: Path) -> Footprint:
    """Without pages. The formula is of native graphs; others are near it."""
    return footprint(
        graph,
        model.geometry,
        tokens=config.token_budget,
        rows=config.slots,
        pages=0,
        page_tokens=1,
        kv_format=choose_kv_format(backend, config.kv_format),
    )


def _place(config: Config) -> tuple[Backend, str, str]:
    """(backend, why, device and why)."""
    device, reason = choose_device(config)
    if device == "cuda":
        return "cuda", reason, f"{device}: {reason}"
    return *choose_backend(config.backend, config.strict), f"{device}: {reason}"


def measured_amdahl(model: InstalledModel, backend: Backend, cores: int, progress: Progress) -> Amdahl:
    """What Amdahl's law makes of this model's step times on this machine, measured once and kept beside the graph."""
    fit = fit_amdahl(scaling.ensure(model, backend, cores, progress).samples)
    return Amdahl(
        threads=fit.threads,
        step_ms=tuple(1e3 * median for median in fit.medians),
        spread_ms=tuple(1e3 * spread for spread in fit.spreads),
        p=fit.p,
        p_low=fit.p_low,
        p_high=fit.p_high,
        speedup=None if fit.p is None else amdahl(fit.p, cores),
        cores=cores,
        why=fit.why,
    )


def limits_of(config: Config, geometry: Geometry, backend: Backend, room: int | None = None) -> Limits:
    """A pool of `pages` 0 has what all slots can fill, or `room` bytes, whichever is less.

    Without `room` it has half of the device's free memory.
    """
    kv_format = choose_kv_format(backend, config.kv_format)
    page_tokens = config.page_tokens or best_page_tokens(backend, geometry)
    if backend == "native" and page_tokens > LARGEST_PAGE:
        raise ConfigError(
            f"pages of {page_tokens} tokens are for GPUs; on the CPU {LARGEST_PAGE} at most", param="page_tokens"
        )
    context = config.context or geometry.context
    if context > geometry.context:
        raise ConfigError(f"context {context} exceeds the model's {geometry.context} tokens", param="context")
    wanted = config.slots * -(-context // page_tokens)
    free = _free_on_gpu() if backend == "cuda" else memory.available()
    page_bytes = bytes_per_page(geometry, page_tokens, kv_format)
    swap_slots = 0 if backend == "cuda" else swap_bytes(config) // slot_bytes(page_bytes)
    wish, most = (int(free * memory.POOL_SHARE), free) if room is None else (room, room)
    buffers = swap_buffers(swap_slots, page_bytes)
    fitting, most = (max(0, pages_that_fit(geometry, page_tokens, size - buffers, kv_format)) for size in (wish, most))
    if config.pages > most:
        raise ConfigError(f"pages is {config.pages}; memory has room for {most}", param="pages")
    return Limits(
        slots=config.slots,
        token_budget=config.token_budget,
        queue_limit=config.queue_limit,
        context=context,
        page_tokens=page_tokens,
        pages=config.pages or max(1, min(wanted, fitting)),  # whether that fits is the segment table's to say
        swap_slots=swap_slots,
        queue_tokens=config.queue_tokens,
        queue_timeout=config.queue_timeout * SECOND,
    )


def swap_buffers(slots: int, page_bytes: int) -> int:
    """Bytes of memory through which pages go to the swap file and back."""
    return THREADS * slot_bytes(page_bytes) if slots else 0


def swap_bytes(config: Config) -> int:
    """What the swap file may take; a GPU's pages are computed again instead."""
    if not config.swap or config.eviction == "recompute":
        return 0
    try:
        return min(config.swap, shutil.disk_usage(config.swap_home).free)
    except OSError as error:
        raise ConfigError(f"no swap file in {config.swap_home}: {error.strerror}", param="swap_directory") from error


def _free_on_gpu() -> int:
    card = gpus.first_card()
    return card.memory_free if card else 0
