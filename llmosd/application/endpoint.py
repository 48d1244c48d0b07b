"""How to reach an MQTT broker, and whether one is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote, urlsplit

from llmosd.errors import ConfigError

LOOPBACK = "127.0.0.1"
PROBE_S = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach a broker. Printing it shows no credentials."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """From `mqtt://[user:password@]host[:port]` or `mqtts://…`; raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError("the broker's URL has no valid port; use mqtt://host:1883", param="mqtt") from None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(
                "the broker's URL must read mqtt://[user:password@]host[:port] or mqtts://…", param="mqtt"
            )
        tls = parts.scheme == "mqtts"
        user, password = (unquote(part) if part is not None else None for part in (parts.username, parts.password))
        return cls(parts.hostname, port or (8883 if tls else 1883), tls, user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


class Answer(Enum):
    """What a port says to an MQTT CONNECT."""

    NOTHING = "nothing listens"
    ACCEPTED = "a broker that accepts"
    REFUSED = "a broker that refuses"
    OTHER = "something that is no MQTT broker"


async def probe(host: str, port: int, *, level: int = 4) -> Answer:
    """Say CONNECT (protocol level 4 is MQTT 3.1.1, 5 is MQTT 5) and hear what answers. Never raises."""
    try:
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return Answer.NOTHING
    try:
        async with asyncio.timeout(PROBE_S):
            writer.write(_connect_packet(level))
            reply = await reader.readexactly(4)  # type, length, flags, return code
            if reply[0] != 0x20:
                return Answer.OTHER
            writer.write(b"\xe0\x00")  # DISCONNECT
            await writer.drain()
            return Answer.REFUSED if reply[3] else Answer.ACCEPTED
    except (OSError, EOFError, TimeoutError):
        return Answer.OTHER
    finally:
        writer.close()


async def settled(port: int) -> Answer:
    """What a loopback port says; asks again for a second while it is neither broker nor free, as one that ends is."""
    for _ in range(5):
        if (answer := await probe(LOOPBACK, port)) is not Answer.OTHER:
            break
        await asyncio.sleep(0.2)
    return answer


def _connect_packet(level: int) -> bytes:
    """Clean session, keepalive 10 s, no client id (MQTT 3.1.1 §3.1; MQTT 5 has a property length before the id)."""
    body = b"\x00\x04MQTT" + bytes((level, 0x02, 0, 10)) + (b"\x00" if level == 5 else b"") + b"\x00\x00"
    return bytes((0x10, len(body))) + body
