"""How late the event loop runs what is due: the cost of anything that blocks it."""

from __future__ import annotations

import asyncio
import time

from llmosd.prediction.estimators import LatencyWindow

INTERVAL_S = 0.5  # each look wakes an idle daemon


class LoopLag:
    """Sleeps in the loop it watches and keeps by how much it overslept, over the last 60 s."""

    def __init__(self) -> None:
        self._late_ms = LatencyWindow(60)

    async def run(self) -> None:
        """Never returns; a task of the daemon's group."""
        while True:
            due = time.monotonic_ns() + int(INTERVAL_S * 1e9)
            await asyncio.sleep(INTERVAL_S)
            now = time.monotonic_ns()
            self._late_ms.add(max(0, now - due) / 1e6, now)

    def p99_ms(self) -> float | None:
        return self._late_ms.summary(time.monotonic_ns(), 0.99).percentiles[0]
