"""CPU time of another process's threads, and of it with its children, in seconds."""

from __future__ import annotations

from pathlib import Path

import psutil


class ThreadTimes:
    """What a process's threads have used since this was made: its main thread apart, there the event loop runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._read()

    def since(self) -> tuple[float, float]:
        """(main thread, all others)"""
        used = {thread: total - self._before.get(thread, 0.0) for thread, total in self._read().items()}
        main = used.pop(self._pid)
        return main, sum(used.values())

    def _read(self) -> dict[int, float]:
        tasks = Path(f"/proc/{self._pid}/task").iterdir()
        return {int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def cpu_of(pid: int) -> float:
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)
