"""Which process is meant: a pid alone is reused, a pid with its start time is not."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

START_TOLERANCE_S = 2.0  # the kernel's boot time, which start times are counted from, moves with clock corrections


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this host; `started` is its start in Unix seconds."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now, or None; one that has ended but is not reaped counts as gone."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid, process.create_time())
        except psutil.Error:
            return None

    @classmethod
    def current(cls) -> ProcessIdentity:
        return cls(os.getpid(), psutil.Process().create_time())

    def alive(self) -> bool:
        now = ProcessIdentity.of(self.pid)
        return now is not None and abs(now.started - self.started) < START_TOLERANCE_S
