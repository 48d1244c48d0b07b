"""Progress of a download or an import: a bar with size and time left on a terminal, else one line a stage."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

MANY = 10_000  # what is counted by more than this is bytes


class Bars:
    """Callable as (stage, done, total); stages appear as they are first named. Draws on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        amount = TextColumn("{task.fields[amount]}")
        columns = (TextColumn("{task.description:<10}"), BarColumn(), amount, TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=total, amount="")
            if not self._console.is_terminal:
                print(f"{stage} ({_amount(total)})" if total > 1 else stage, file=sys.stderr, flush=True)
        amount = f"{_amount(done)} of {_amount(total)}"
        self._progress.update(self._stages[stage], completed=done, total=total, amount=amount)


def _amount(number: int) -> str:
    """Stages count bytes, but for those that count rounds."""
    return decimal(number) if number >= MANY else str(number)
