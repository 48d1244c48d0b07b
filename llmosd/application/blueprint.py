"""From a configuration to everything an engine is built of: model, backend, sizes."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass

from llmosd.application.image import Numerics
from llmosd.application.memory import SegmentInfo
from llmosd.config import Config
from llmosd.errors import ConfigError
from llmosd.hardware import gpus, memory, processors
from llmosd.prediction.costs import FittedPrefillCost, FittedTransferCost
from llmosd.prediction.formulas import amdahl, fit_amdahl
from llmosd.runtime import importer, scaling
from llmosd.runtime.backend import LARGEST_PAGE, best_page_tokens, variant_name
from llmosd.runtime.device import choose_device
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.fetch import Progress
from llmosd.runtime.footprint import footprint
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_pool import bytes_per_page
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import Backend, PagedModel, choose_backend, choose_kv_format, pages_that_fit
from llmosd.runtime.swap_file import SwapFile, slot_bytes
from llmosd.system.costs import Costs
from llmosd.system.executor import Executor
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.kernels import Kernels
from llmosd.system.policy import POLICIES
from llmosd.system.speculation import Speculation
from llmosd.types import KvFormat
from llmosd.wire import Amdahl

BROKEN_DISK_S = 1.0  # assumed for a page where the swap file cannot be used at the start


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Calling it builds kernel and executor, on the thread that will own them."""

    config: Config
    model: InstalledModel
    backend: Backend
    why: str  # this backend
    device: str  # and why
    threads: int
    limits: Limits
    amdahl: Amdahl

    def __call__(self) -> tuple[Kernels, Executor]:
        config, limits = self.config, self.limits
        model = PagedModel.load(
            self.model,
            backend=self.backend,
            weights=config.weights,
            pages=limits.pages,
            page_tokens=limits.page_tokens,
            threads=self.threads,
            spin=config.spin,
            kv_format=self.kv_format,
        )
        speculation = Speculation() if config.speculation else None
        prefixes = self._prefixes() if config.prefix_cache else None
        transfers, transfer_cost = self._swap(model)
        kernel = Kernel(
            limits,
            POLICIES[config.policy](),
            speculation,
            prefixes,
            self.model.id,
            quotas=config.quotas,
            eviction=config.eviction,
            costs=Costs(FittedPrefillCost(), transfer_cost),
        )
        tokenizer = self.model.load_tokenizer()
        return Kernels(kernel), OnnxExecutor(model, tokenizer, kernel.page_table, kernel.columns, transfers)

    def _swap(self, model: PagedModel) -> tuple[PageTransfers | None, FittedTransferCost]:
        """What moves pages to the swap file and back, if there is one, and what that costs on this disk."""
        if not self.limits.swap_slots:
            return None, FittedTransferCost()
        assert model.page_bytes is not None, "swap space for pages that are not in this process's memory"
        file = SwapFile(self.config.swap_home, self.limits.swap_slots, model.page_bytes.size)
        try:
            page_s = file.probe()
        except OSError:
            page_s = BROKEN_DISK_S
        return PageTransfers(model.page_bytes, file), FittedTransferCost(page_s)

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

    def segments(self) -> list[SegmentInfo]:
        """What the model takes of memory, by kind."""
        limits, name = self.limits, self.model.id
        sizes = footprint(
            self.model.graph(variant_name(self.backend, self.config.weights)),
            self.model.geometry,
            tokens=limits.token_budget,
            rows=limits.slots,
            pages=limits.pages,
            page_tokens=limits.page_tokens,
            kv_format=self.kv_format,
        )
        kinds = (("weights", sizes.weights), ("workspace", sizes.workspace), ("pool", sizes.pool))
        return [SegmentInfo(name, kind, size) for kind, size in kinds]

    @property
    def kv_format(self) -> KvFormat:
        return choose_kv_format(self.backend, self.config.kv_format)


def draw(config: Config, model: InstalledModel, progress: Progress) -> Blueprint:
    """Blocking: builds the graph and times the threads where that is still to do. Raises ConfigError, ModelError."""
    backend, why, device = _place(config)
    limits = limits_of(config, model.geometry, backend)
    importer.ensure_graph(model, backend, config.weights, progress)
    if backend == "cuda":
        cores, speed_up = 1, Amdahl(why="steps run on the GPU")
    else:
        cores = processors.usable_cores()
        speed_up = measured_amdahl(model, backend, cores, progress)
    return Blueprint(config, model, backend, why, device, config.threads or cores, limits, speed_up)


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


def limits_of(config: Config, geometry: Geometry, backend: Backend) -> Limits:
    """A pool of `pages` 0 has what all slots can fill, or half of the device's free memory, whichever is less."""
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
    fitting = pages_that_fit(geometry, page_tokens, int(free * memory.POOL_SHARE), kv_format)
    most = pages_that_fit(geometry, page_tokens, free, kv_format)
    if config.pages > most:
        raise ConfigError(f"pages is {config.pages}; free memory has room for {most}", param="pages")
    page_bytes = bytes_per_page(geometry, page_tokens, kv_format)
    return Limits(
        slots=config.slots,
        token_budget=config.token_budget,
        queue_limit=config.queue_limit,
        context=context,
        page_tokens=page_tokens,
        pages=config.pages or min(wanted, fitting),
        swap_slots=0 if backend == "cuda" else _swap_bytes(config) // slot_bytes(page_bytes),
    )


def _swap_bytes(config: Config) -> int:
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
