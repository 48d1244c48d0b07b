"""A client that stops reading its socket: its request pauses, others stream on, and all arrives once it reads again."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import openai
from started import MODEL, PATIENCE_S, Daemon, eventually, started

TOKENS = 600
ASKED = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "logprobs": 20}


def ask(daemon: Daemon) -> socket.socket:
    """A connection whose answer nobody reads yet; events with log probabilities fill its buffers soon."""
    body = json.dumps({**ASKED, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}).encode()
    address = urlsplit(daemon.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE_S)
    connection.connect((address.hostname, address.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nX-Request-Id: slow\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read(connection: socket.socket) -> list[str]:
    """What its events say, to the end."""
    with connection.makefile("rb") as stream:
        received = stream.read()
    head, _, chunks = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    body = b""
    while (size := int(chunks[: chunks.index(b"\r\n")], 16)) > 0:
        chunks = chunks[chunks.index(b"\r\n") + 2 :]
        body, chunks = body + chunks[:size], chunks[size + 2 :]
    return re.findall(r"^data: (.*)$", body.decode(), re.MULTILINE)


def test_a_client_that_stops_reading(home: Path) -> None:
    with started(home, "--strict", "--stream-buffer", "16") as daemon, ask(daemon) as connection:

        def slow() -> dict[str, object]:
            rows = daemon.get("/v1/requests").json()["data"]
            return next((row for row in rows if row["id"] == "slow"), {})

        def standing() -> dict[str, object] | None:
            """Paused at two looks, and not for a moment only in which the daemon was late to send."""
            before, now = slow(), slow()
            same = all(before.get(name) == now.get(name) for name in ("state", "completion_tokens"))
            return now if same and now.get("state") == "paused" else None

        paused = eventually(standing, "it pauses")
        assert 16 <= paused["completion_tokens"] < TOKENS
        assert (paused["pages"], paused["position"]) == (0, None)
        assert " paused " in daemon.cli("ps").stdout
        with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0) as client:
            stream = client.completions.create(**ASKED, max_tokens=40, stream=True, extra_body={"ignore_eos": True})
            begun = "".join(chunk.choices[0].text for chunk in stream)
        still = slow()
        assert [still[name] for name in ("state", "completion_tokens")] == ["paused", paused["completion_tokens"]]
        *events, done = read(connection)
        assert done == "[DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        assert sum(len(choice["logprobs"]["tokens"]) for choice in choices if choice["logprobs"]) == TOKENS
        assert "".join(choice["text"] for choice in choices).startswith(begun)
        assert slow()["state"] == "finished"
