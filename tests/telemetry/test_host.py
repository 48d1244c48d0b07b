"""Probes of the real host and of a real event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import psutil

from llmosd.application.lag import LoopLag
from llmosd.hardware.probes import HostProbe


def test_the_host_is_measured_in_plausible_units() -> None:
    probe = HostProbe()
    sum(range(2_000_000))
    host = probe.sample()
    assert host.cpus == psutil.cpu_count()
    assert 0 <= host.cpu <= 1
    assert 0 < host.process_rss < host.memory_used < host.memory_total == psutil.virtual_memory().total
    assert 0 < host.process_cpu <= host.cpus + 0.5
    assert all(0 <= gpu.utilisation <= 1 and gpu.memory_used <= gpu.memory_total for gpu in host.gpus)


async def test_what_blocks_the_loop_shows_as_lag() -> None:
    lag = LoopLag()
    assert lag.p99_ms() is None
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0.4)
    time.sleep(0.5)  # noqa: ASYNC251  (the offence under test)
    await asyncio.sleep(0.1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    p99 = lag.p99_ms()
    assert p99 is not None and p99 >= 200
