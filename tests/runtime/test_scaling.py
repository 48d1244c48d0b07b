"""Step times by thread count: measured once, kept, and fit for Amdahl's law."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmosd.prediction.formulas import fit_amdahl
from llmosd.runtime import scaling
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.paged_model import choose_backend


def test_timings_are_measured_once_and_kept(
    model: InstalledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = choose_backend("auto", strict=False)
    copy = InstalledModel(model.id, tmp_path, model.record)
    shutil.copytree(model.path / "graphs" / backend, tmp_path / "graphs" / backend, copy_function=_link)
    monkeypatch.setattr(scaling, "ROUNDS", 4)
    seen: list[tuple[int, int]] = []
    first = scaling.ensure(copy, backend, 2, lambda stage, done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]
    assert {count: len(times) for count, times in first.samples.items()} == {1: 4, 2: 4}
    assert fit_amdahl(first.samples).p is not None
    assert scaling.ensure(copy, backend, 2, lambda stage, done, total: pytest.fail("measured again")) == first
    alone = scaling.ensure(copy, backend, 1, lambda stage, done, total: pytest.fail("one core"))
    assert fit_amdahl(alone.samples).why.startswith("not measured")


def _link(source: str, target: str) -> None:
    if not source.endswith("scaling.json"):
        Path(target).hardlink_to(source)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (3, [1, 2, 3]), (8, list(range(1, 9))), (24, [1, 2, 4, 8, 16, 24])]
)
def test_thread_counts_cover_the_machine(cores: int, counts: list[int]) -> None:
    assert scaling.thread_counts(cores) == counts
