"""Publish made-up Frames to a broker, to look at the monitor without a daemon: python -m tests.tui.publish PORT."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace

import aiomqtt
import msgspec

from llmosd.application.topics import EVENT, FRAME, STATUS
from tests.tui.frames import NODE, event, frame, status


async def publish(port: int, requests: int) -> None:
    will = aiomqtt.Will(STATUS.on(NODE), msgspec.json.encode(status("offline")), STATUS.qos, retain=True)
    async with aiomqtt.Client("127.0.0.1", port, will=will) as client:
        await client.publish(STATUS.on(NODE), msgspec.json.encode(status()), STATUS.qos, retain=True)
        start = time.time()
        for seq in range(1, 1_000_000):
            made = replace(frame(seq, requests), at=start + seq)
            await client.publish(FRAME.on(NODE), msgspec.json.encode(made), FRAME.qos, retain=True)
            if seq % 7 == 0:
                noted = replace(event(seq), at=start + seq)
                await client.publish(EVENT.on(NODE), msgspec.json.encode(noted), EVENT.qos)
            await asyncio.sleep(start + seq - time.time())


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 11))
