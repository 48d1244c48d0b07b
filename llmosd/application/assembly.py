"""From installed models to an engine: kernels under one memory budget, and an executor that loads what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmosd.application import blueprint
from llmosd.application.blueprint import Blueprint, Budget, config_of
from llmosd.application.models import ModelCard, ServedModel
from llmosd.application.prompts import Prompts
from llmosd.config import Config
from llmosd.errors import ModelError, NotFound
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.fetch import Progress
from llmosd.runtime.installed import InstalledModel, installed
from llmosd.runtime.models_executor import ModelsExecutor
from llmosd.runtime.swap_file import SwapFile
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.kernel import Kernel
from llmosd.system.kernels import Kernels
from llmosd.system.residency import SECOND, ModelEntry, Residency
from llmosd.system.swap import SwapBudget
from llmosd.types import PoolSize


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is there of a model before it is loaded. Front end and engine share the tokenizer: it is only read."""

    plan: Blueprint
    kernel: Kernel
    file: SwapFile | None
    tokenizer: Tokenizer


class Assembly:
    """Calling it builds the engine's parts, on the thread that will own them, with the first model loaded.

    `open` makes further ones ready, on any thread.
    """

    def __init__(self, config: Config, budget: Budget, models: Sequence[tuple[Blueprint, Tokenizer]]) -> None:
        """`models` are the default one and those that are pinned beside it."""
        self.first = models[0][0]
        self._config = config
        self._budget = budget
        self._swap = SwapBudget(blueprint.swap_bytes(config))  # of all models together
        self._pinned = sum(plan.size.bytes(plan.size.least) for plan, _ in models[1:])
        self._parts: dict[str, _Parts] = {}
        self.served, self._entries = list[ServedModel](), list[ModelEntry]()
        for plan, tokenizer in models:
            served, entry = self._known(plan, tokenizer)
            self.served.append(served)
            self._entries.append(entry)

    @classmethod
    def draw(
        cls, config: Config, model: InstalledModel, pinned: Sequence[InstalledModel], progress: Progress
    ) -> Assembly:
        """Blocking: builds graphs and times the threads where that is still to do. Raises ConfigError, ModelError."""
        tokenizers = [one.load_tokenizer() for one in (model, *pinned)]
        budget = Budget.of(config)
        others = [blueprint.draw_other(config_of(config, one), one, progress, budget) for one in pinned]
        reserved = sum(plan.size.bytes(plan.size.least) for plan in others)
        plans = [blueprint.draw(config, model, progress, budget, reserved), *others]
        return cls(config, budget, list(zip(plans, tokenizers, strict=True)))

    def __call__(self) -> tuple[Kernels, ModelsExecutor]:
        """Raises DoesNotFit, ModelError."""
        residency = Residency(self._budget.total, self._budget.process)
        for entry in self._entries:
            residency.add(entry)
        executor, name = ModelsExecutor(self._executor), self.first.model.id
        loaded = executor.load(PoolSize(name, residency.start(name)))
        if loaded.error is not None:
            raise ModelError(loaded.error)
        return Kernels(residency=residency), executor

    # ---- other models

    def open(self, name: str) -> tuple[ServedModel, ModelEntry]:
        """What front end and engine need of a model to know it. Raises NotFound, ModelError, ConfigError."""
        model = next((model for model in installed(self._config.home) if model.id == name), None)
        if model is None:
            raise NotFound(f"no model {name!r} is installed")
        config = config_of(self._config, model)
        plan = blueprint.draw_other(config, model, lambda stage, done, total: None, self._budget, self._pinned)
        return self._known(plan, model.load_tokenizer())

    def installed(self) -> list[ModelCard]:
        return [_card(model, config_of(self._config, model)) for model in installed(self._config.home)]

    def _known(self, plan: Blueprint, tokenizer: Tokenizer) -> tuple[ServedModel, ModelEntry]:
        model, (kernel, file) = plan.model, plan.kernel(self._swap)
        self._parts[model.id] = _Parts(plan, kernel, file, tokenizer)
        prompts = Prompts(tokenizer, model.load_chat_template())
        return ServedModel(_card(model, plan.config), prompts, plan.numerics), self._entry(plan, kernel)

    def _entry(self, plan: Blueprint, kernel: Kernel) -> ModelEntry:
        pinned, first = plan.model.id in self._config.pinned_models, plan.model.id == self._config.model
        lasts = first or pinned or not self._config.keep_alive
        return ModelEntry(kernel, plan.size, pinned, None if lasts else self._config.keep_alive * SECOND)

    def _executor(self, model: str) -> OnnxExecutor:
        parts = self._parts[model]
        return parts.plan.executor(parts.kernel, parts.file, parts.tokenizer)


def _card(model: InstalledModel, config: Config) -> ModelCard:
    return ModelCard(model.id, config.context or model.geometry.context, int(model.record.imported_at))
