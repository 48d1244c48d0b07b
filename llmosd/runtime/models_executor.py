"""An Executor over several models, which are loaded and unloaded as plans say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmosd.errors import ModelError
from llmosd.hardware import memory
from llmosd.runtime.executor import OnnxExecutor
from llmosd.system.executor import nothing
from llmosd.types import LoadDone, Plan, PoolSize, StepResult


class ModelsExecutor:
    """Each model has an OnnxExecutor from when it is first loaded on; it keeps its sequences while that is not."""

    def __init__(self, make: Callable[[str], OnnxExecutor]) -> None:
        """`make` loads a model for the first time; raises ModelError."""
        self._make = make
        self._executors: dict[str, OnnxExecutor] = {}

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        if plan.model:
            return self._executors[plan.model].execute(plan, meanwhile)
        meanwhile()
        began = time.perf_counter_ns()
        unloads = tuple(map(self._unload, plan.unloads))
        for size in plan.resizes:
            self._executors[size.model].resize(size.pages, size.copies)
        loads = tuple(map(self.load, plan.loads))
        took = time.perf_counter_ns() - began
        return StepResult(plan.step, (), 0, took, loads=loads, unloads=unloads)

    def interrupt(self) -> None:
        for executor in tuple(self._executors.values()):
            executor.interrupt()

    def load(self, size: PoolSize) -> LoadDone:
        began, error = time.perf_counter_ns(), None
        try:
            if size.model in self._executors:
                self._executors[size.model].reload(size.pages)
            else:
                executor = self._make(size.model)
                executor.resize(size.pages)
                self._executors[size.model] = executor
        except ModelError as failure:
            error = failure.message
        return LoadDone(size.model, time.perf_counter_ns() - began, error)

    def _unload(self, model: str) -> LoadDone:
        began = time.perf_counter_ns()
        self._executors[model].unload()
        memory.trim()
        return LoadDone(model, time.perf_counter_ns() - began)

    # ---- as a PageStore

    def bytes_per_page(self, model: str) -> int:
        return self._executors[model].bytes_per_page(model) if model in self._executors else 0

    def read_pages(self, model: str, pages: Sequence[int]) -> memoryview:
        return self._executors[model].read_pages(model, pages)

    def write_pages(self, model: str, pages: Sequence[int], contents: Sequence[memoryview]) -> None:
        self._executors[model].write_pages(model, pages, contents)
