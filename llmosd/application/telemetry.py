"""The daemon's pulse: once a second a Frame to the broker and the database, and events as they happen."""

from __future__ import annotations

import asyncio
import time

from llmosd.application.bus import Bus
from llmosd.application.engine import Batch
from llmosd.application.eventlog import EventLog
from llmosd.application.frames import FrameBuilder
from llmosd.application.lag import LoopLag
from llmosd.application.service import Service
from llmosd.application.store import Store
from llmosd.errors import Unavailable
from llmosd.hardware.probes import HostProbe
from llmosd.types import Output
from llmosd.wire import Frame

TICK_S = 1.0


class Telemetry:
    """Joins what measures to what publishes and stores. `run` is its one task; `frame` is the latest."""

    def __init__(
        self,
        service: Service,
        frames: FrameBuilder,
        bus: Bus,
        store: Store,
        events: EventLog,
        lag: LoopLag,
        probe: HostProbe,
    ) -> None:
        self.frame: Frame | None = None
        self._service = service
        self._frames = frames
        self._bus = bus
        self._store = store
        self._events = events
        self._lag = lag
        self._probe = probe
        events.attach(bus.publish_event)
        events.attach(store.add_event)
        service.subscribe(self.observe)

    def observe(self, batch: Batch) -> None:
        """Every batch of the engine, on the event loop."""
        self._frames.observe(batch.events, batch.step)
        if rare := [event for event in batch.events if type(event) is not Output]:
            self._store.add_events(rare)
            self._events.note_kernel(rare)

    async def run(self) -> None:
        """Returns when the engine is gone: ending the daemon is the part of whoever watches that.

        Ticks that came too late are left out, not made up for.
        """
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await self.tick()
            except Unavailable:
                return
            due = max(due + TICK_S, loop.time())
            await asyncio.sleep(due - loop.time())

    async def tick(self) -> None:
        views = await self._service.requests()
        stats = self._service.inspected
        assert stats is not None  # that is what `requests` looks at
        self.frame = self._frames.build(
            stats,
            views,
            self._probe.sample(),
            now=self._service.clock(),
            at=time.time(),
            state=self._service.phase,
            lag_ms=self._lag.p99_ms(),
            gaps=self._bus.gaps,
        )
        self._store.add_views(views)
        self._store.add_frame(self.frame)
        self._bus.publish_frame(self.frame)
