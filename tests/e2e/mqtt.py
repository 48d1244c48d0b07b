"""A client of the command topic, as a script at home or a broker's rule engine would be one."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from typing import Any, Self

import aiomqtt

PATIENCE_S = 60.0


class Commander:
    """Sends commands and returns their replies; on a thread with a loop of its own."""

    def __init__(self, port: str, node: str) -> None:
        self._port = int(port)
        self._topics = f"llmos/{node}/command", f"llmos/{node}/reply"
        self._tickets = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        ticket = f"t{next(self._tickets)}"
        reply = self.send(json.dumps({"command": command, "ticket": ticket, **fields}).encode())
        assert (reply["ticket"], reply["command"]) == (ticket, command)
        return reply

    def send(self, payload: bytes) -> dict[str, Any]:
        """The next reply there is."""
        return asyncio.run_coroutine_threadsafe(self._send(payload), self._loop).result(PATIENCE_S)

    async def _send(self, payload: bytes) -> dict[str, Any]:
        topic, answers = self._topics
        async with aiomqtt.Client("127.0.0.1", self._port) as client:
            await client.subscribe(answers, 1)
            await client.publish(topic, payload, 1)
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                reply: dict[str, Any] = json.loads(message.payload)
                return reply
        raise AssertionError("no reply")
