"""A daemon-like process for the crash tests: accepts, ends and streams without pause until it is killed.

`python writer.py DATABASE` prints the id of each request after it was acknowledged, and `id done` after its end was.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from pathlib import Path

from llmosd.application.store import Store
from llmosd.types import Ended, State
from llmosd.wire import Frame
from tests.telemetry.examples import finished, view


async def client(store: Store, name: str) -> None:
    for number in itertools.count():
        id, created_at = f"{name}-{number}", time.time()
        await store.record_accepted(view(id, created_at=created_at))
        print(id, flush=True)
        if number % 2:
            store.add_events([Ended(finished(id, created_at=created_at), 0)])
        else:
            store.add_views([view(id, created_at=created_at, state=State.DECODE)])


async def main(path: Path) -> None:
    store = await Store.open(path)
    run = time.time_ns()
    clients = [asyncio.create_task(client(store, f"{run}-{number}")) for number in range(8)]
    while True:
        store.add_frame(Frame("n", 1, time.time()))
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in clients)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
