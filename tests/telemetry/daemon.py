"""A daemon-like process for the broker tests: `python -m tests.telemetry.daemon HOME PORT mosquitto|iotcore`.

At the first line of its input it ensures the broker and publishes; once it is connected it prints the watcher's pid
and whether the broker was adopted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from llmosd.application.broker import MOSQUITTO, Broker, ensure_broker
from llmosd.application.bus import Bus
from llmosd.application.eventlog import EventLog
from llmosd.config import Config
from llmosd.wire import Frame, Status
from tests.telemetry.conftest import until


async def main(home: Path, port: int, kind: str) -> None:
    config = Config(home=home, mqtt_port=port, node="test")

    async def ensure() -> Broker:
        return await ensure_broker(config, mosquitto=MOSQUITTO if kind == "mosquitto" else None)

    bus = Bus(ensure, Status("test", "online", time.time(), os.getpid()), EventLog("test"))
    task = asyncio.create_task(bus.run())
    await until(lambda: bus.connected)
    assert bus.broker
    print(bus.broker.pid, bus.broker.adopted, flush=True)
    bus.publish_frame(Frame("test", 1, time.time()))
    await task


if __name__ == "__main__":
    sys.stdin.readline()
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
