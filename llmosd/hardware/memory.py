"""Memory this process may still take, and how much of it the KV pool should have."""

from __future__ import annotations

from ctypes import CDLL
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
BUDGET_SHARE = 0.75  # of what is free, for models and their pools together
DAEMON_GROWTH = 32 << 20  # bytes that the daemon itself still takes after its start: tokenizers, streams, history
POOL_SHARE = 0.5  # of what is free: the other half stays for activations, logits and everybody else


def available(cgroup: Path = CGROUP) -> int:
    """Bytes that can be taken without swapping: the kernel's estimate, or less where a control group allows less."""
    free = int(psutil.virtual_memory().available)
    allowed = _cgroup_headroom(cgroup)
    return free if allowed is None else min(free, allowed)


def trim() -> None:
    """Give back to the system what the allocator keeps of freed memory, where it can be told to (glibc)."""
    if (trim := getattr(CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def for_models() -> int:
    """Bytes that models and their pools may take where nothing else was said."""
    return int(available() * BUDGET_SHARE)


def _cgroup_headroom(cgroup: Path) -> int | None:
    """Limit minus use of this control group (version 2); None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = (cgroup / "memory.current").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
