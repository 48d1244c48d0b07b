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
    received, sent = asyncio.Queue[Batch](), batches(5000)
    outbox = Outbox(received.put_nowait)
    thread = threading.Thread(target=lambda: [outbox.put(batch) for batch in sent])
    thread.start()
    async with asyncio.timeout(30):
        assert [await received.get() for _ in sent] == sent
    thread.join()
    assert received.empty()


async def test_a_loop_that_is_busy_loses_nothing() -> None:
    """More batches than the pipe has bytes, while the loop does not read."""
    received, (batch,) = asyncio.Queue[Batch](), batches(1)
    outbox = Outbox(received.put_nowait)
    for _ in range(100_000):
        outbox.put(batch)
    assert received.empty()
    async with asyncio.timeout(30):
        for _ in range(100_000):
            await received.get()


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
