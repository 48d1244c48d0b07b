"""Batches reach the event loop in order, each once, whichever way it is woken."""

from __future__ import annotations

import asyncio
import threading

import engine_world as world

from llmosd.application.engine import Batch
from llmosd.application.engine_messages import Reply
from llmosd.application.outbox import Outbox


def batches(count: int) -> list[Batch]:
    kernel, _ = world.build()
    stats = kernel.stats(requests=False)
    return [Batch((Reply(number, None),), (), None, stats) for number in range(count)]


async def test_from_another_thread_to_the_loop() -> None:
    received, sent = list[Batch](), batches(5000)
    outbox = Outbox(received.append)
    thread = threading.Thread(target=lambda: [outbox.put(batch) for batch in sent])
    thread.start()
    async with asyncio.timeout(30):
        while len(received) < len(sent):
            await asyncio.sleep(0.001)
    thread.join()
    assert received == sent


async def test_a_loop_that_is_busy_loses_nothing() -> None:
    """More batches than the pipe has bytes, while the loop does not read."""
    received, (batch,) = list[Batch](), batches(1)
    outbox = Outbox(received.append)
    for _ in range(100_000):
        outbox.put(batch)
    assert not received
    async with asyncio.timeout(30):
        while len(received) < 100_000:
            await asyncio.sleep(0.001)


async def test_what_is_left_at_the_end_can_be_had_at_once() -> None:
    received, sent = list[Batch](), batches(3)
    outbox = Outbox(received.append)
    for batch in sent:
        outbox.put(batch)
    outbox.drain()
    assert received == sent
    await asyncio.sleep(0.01)
    assert received == sent


async def test_the_loop_wakes_by_itself() -> None:
    received, (batch,) = asyncio.Event(), batches(1)
    outbox = Outbox(lambda _batch: received.set())
    timer = threading.Timer(0.05, outbox.put, (batch,))
    timer.start()
    async with asyncio.timeout(10):
        await received.wait()
