"""The HTTP server inside the daemon's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from llmosd.errors import ConfigError

BACKLOG = 2048
SEND_BUFFER = 64 * 2**10  # bytes that the system keeps of what a client has not read; it may double them
CLOSE_S = 5  # that open connections get to take their last bytes


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; raises ConfigError when the address cannot be had. Bound early, so that this fails first."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigError(f"{host} is no address of this machine: {exc.strerror}", param="host") from exc
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    try:
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _unusable(host, port, exc) from exc
    return listener


def is_exposed(listener: socket.socket) -> bool:
    """Whether other machines can reach it."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """uvicorn, ended by the daemon rather than by signals of its own."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        self.ready = asyncio.Event()
        self._closing = asyncio.Event()
        self.closed = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which wakes ten times a second to look whether it should exit; its Date header needs one."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._closing.wait()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until `close`; open streams get CLOSE_S to end."""
        try:
            await self.serve(sockets=[listener])
        finally:
            self.closed.set()

    def close(self) -> None:
        self.should_exit = True
        self._closing.set()


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    match error.errno:
        case errno.EADDRINUSE:
            return ConfigError(f"port {port} of {host} is taken: choose another with --port", param="port")
        case errno.EACCES:
            return ConfigError(f"port {port} needs privileges: choose one above 1023 with --port", param="port")
    return ConfigError(f"{host}:{port} cannot be listened on: {error.strerror}", param="host")
