"""Soak a managed broker at a daemon's load, and worse: what does it cost after minutes of it?

One publisher sends a 20 KB retained Frame a second and bursts of events; two subscribers read; a third does not read;
every second some clients connect and leave, with and without goodbye, and some speak no MQTT. Prints the broker's
memory, open files and CPU at intervals, and what the reading subscribers missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import psutil

from llmosd.application.broker import MOSQUITTO, Broker, ensure_broker
from llmosd.application.topics import EVENT, FRAME, STATUS
from llmosd.config import Config

NODE = "soak"
EVENTS_PER_S, EVENT_BURST, BURST_EVERY_S = 4, 200, 10
FRAME_BYTES = 20_000
GARBAGE = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x10",
    b"\x10\xff\xff\xff\x7f",
    os.urandom(64),
    b"\x10\x0c\x00\x04MQTT\x09\x02\x00\x0a\x00\x00",
)


async def publish(port: int, sent: dict[str, int], stop: asyncio.Event) -> None:
    async with aiomqtt.Client(
        "127.0.0.1", port, keepalive=10, will=aiomqtt.Will(STATUS.on(NODE), b"gone", 1, True)
    ) as client:
        await client.publish(STATUS.on(NODE), b"online", STATUS.qos, STATUS.retain)
        while not stop.is_set():
            await client.publish(FRAME.on(NODE), os.urandom(FRAME_BYTES), FRAME.qos, FRAME.retain)
            sent["frames"] += 1
            burst = EVENT_BURST if sent["frames"] % BURST_EVERY_S == 0 else EVENTS_PER_S
            for _ in range(burst):
                await client.publish(EVENT.on(NODE), os.urandom(200), EVENT.qos)
                sent["events"] += 1
            await asyncio.sleep(1)


async def subscribe(port: int, got: dict[str, int], protocol: aiomqtt.ProtocolVersion) -> None:
    async with aiomqtt.Client("127.0.0.1", port, protocol=protocol) as client:
        await client.subscribe("llmos/#", 1)
        async for message in client.messages:
            name = message.topic.value.rsplit("/")[-1]
            got[name] = got.get(name, 0) + 1


@contextlib.asynccontextmanager
async def subscriber_that_does_not_read(port: int) -> AsyncIterator[None]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03zzz")
        connection.recv(4)
        connection.sendall(b"\x82\x0c\x00\x01\x00\x07llmos/#\x01")
        yield


async def come_and_go(port: int, stop: asyncio.Event) -> None:
    while not stop.is_set():
        for _ in range(3):
            async with aiomqtt.Client("127.0.0.1", port) as client:
                await client.subscribe("llmos/#")
        for noise in GARBAGE:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(noise)
        await asyncio.sleep(1)


def footprint(broker: Broker) -> dict[str, float]:
    watcher = psutil.Process(broker.pid)
    processes = [watcher, *watcher.children(recursive=True)]
    return {
        "rss_mb": round(sum(p.memory_info().rss for p in processes) / 1e6, 1),
        "fds": sum(p.num_fds() for p in processes),
        "cpu_s": round(sum(sum(p.cpu_times()[:2]) for p in processes), 2),
    }


async def soak(kind: str, seconds: float) -> dict[str, Any]:
    sent, v4, v5 = {"frames": 0, "events": 0}, dict[str, int](), dict[str, int]()
    with tempfile.TemporaryDirectory() as home:
        mosquitto = MOSQUITTO if kind == "mosquitto" else None
        broker = await ensure_broker(Config(home=Path(home), mqtt_port=0), mosquitto=mosquitto)
        port, stop, samples = broker.endpoint.port, asyncio.Event(), []
        assert broker.port_v5
        readers = [
            asyncio.create_task(subscribe(port, v4, aiomqtt.ProtocolVersion.V311)),
            asyncio.create_task(subscribe(broker.port_v5, v5, aiomqtt.ProtocolVersion.V5)),
        ]
        async with subscriber_that_does_not_read(port):
            await asyncio.sleep(1)
            writers = [asyncio.create_task(publish(port, sent, stop)), asyncio.create_task(come_and_go(port, stop))]
            started = time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                samples.append({"at_s": round(elapsed), **footprint(broker)})
                print(json.dumps(samples[-1]), flush=True)
                await asyncio.sleep(seconds / 12)
            stop.set()
            await asyncio.gather(*writers)
            await asyncio.sleep(2)
        await asyncio.sleep(1)
        samples.append({"at_s": round(time.monotonic() - started), **footprint(broker)})
        for reader in readers:
            reader.cancel()
        psutil.Process(broker.pid).terminate()
    return {
        "kind": broker.kind,
        "seconds": seconds,
        "sent": sent,
        "received_v311": v4,
        "received_v5": v5,
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("iotcore", "mosquitto"), default="iotcore")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    result = asyncio.run(soak(options.kind, options.seconds))
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
