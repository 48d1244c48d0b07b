"""The command itself: exit codes, JSON as received, one-line errors, a screen in a real terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from llmos_top.once import BROKER_DOWN, DAEMON_DOWN, LIVE, STALE
from llmosd.wire import Frame
from tests.tui.conftest import LocalBroker, speaking

COMMAND = (sys.executable, "-c", "import sys; from llmos_top.cli import main; sys.exit(main())")


async def llmos_top(home: Path, *arguments: str) -> tuple[int, bytes, str]:
    """Exit code, standard output and error of the command."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LLMOS_HOME": str(home), "COLUMNS": "100"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out, err.decode()


async def test_a_live_frame_is_printed_as_received(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    async with speaking(broker, node) as daemon:
        await daemon.status()
        speaker = asyncio.create_task(_speak(daemon))
        try:
            code, out, err = await llmos_top(tmp_path, "--once", "--json", "--broker", broker.url, "--node", node)
        finally:
            speaker.cancel()
            await asyncio.gather(speaker, return_exceptions=True)
    assert (code, err) == (LIVE, "")
    frame = msgspec.json.decode(out, type=Frame)
    assert out == msgspec.json.encode(frame) + b"\n"
    assert frame.node == node


async def _speak(daemon) -> None:
    for seq in range(1, 1000):
        await daemon.frame(seq)
        await asyncio.sleep(0.2)


async def test_a_frame_that_is_only_remembered_is_stale(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    async with speaking(broker, node) as daemon:
        await daemon.status()
        await daemon.frame(41)
        code, out, err = await llmos_top(tmp_path, "--once", "--json", "--broker", broker.url, "--node", node)
    assert code == STALE and "no Frames" in err
    assert msgspec.json.decode(out, type=Frame).seq == 41


async def test_a_daemon_that_said_goodbye_is_down(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    async with speaking(broker, node) as daemon:
        await daemon.frame(41)
        await daemon.status("offline")
    code, out, err = await llmos_top(tmp_path, "--once", "--json", "--broker", broker.url, "--node", node)
    assert code == DAEMON_DOWN and "llmosd start" in err
    assert msgspec.json.decode(out, type=Frame).seq == 41


async def test_a_daemon_never_heard_of_is_down(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    code, out, err = await llmos_top(tmp_path, "--once", "--json", "--broker", broker.url, "--node", node)
    assert (code, out) == (DAEMON_DOWN, b"") and "llmosd start" in err


@pytest.mark.parametrize("json", [("--json",), ()])
async def test_no_broker_is_said_with_what_to_do(tmp_path: Path, json: tuple[str, ...]) -> None:
    code, out, err = await llmos_top(tmp_path, "--once", *json, "--broker", "mqtt://127.0.0.1:1")
    assert code == BROKER_DOWN
    assert "llmosd start" in out.decode() + err


async def test_the_text_report_shows_summary_and_requests(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    async with speaking(broker, node) as daemon:
        await daemon.frame(41)
        arguments = ("--once", "--ascii", "--broker", broker.url, "--node", node)
        _, out, _ = await llmos_top(tmp_path, *arguments)
    text = out.decode("ascii")
    assert "M/M/1 predicts" in text and "cmpl-" in text
    assert max(map(len, text.splitlines())) <= 100


async def test_frames_stream_one_a_line_until_the_reader_leaves(broker: LocalBroker, node: str, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    async with speaking(broker, node) as daemon:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "--json", "--broker", broker.url, "--node", node),
            stdout=write_end,
            env={**os.environ, "LLMOS_HOME": str(tmp_path)},
        )
        os.close(write_end)
        speaker = asyncio.create_task(_speak(daemon))
        lines = await asyncio.wait_for(asyncio.to_thread(_first_lines, read_end), 60)
        code = await asyncio.wait_for(process.wait(), 60)
        speaker.cancel()
        await asyncio.gather(speaker, return_exceptions=True)
    seqs = [msgspec.json.decode(line, type=Frame).seq for line in lines]
    assert seqs == list(range(seqs[0], seqs[0] + 3)) and code == 0


def _first_lines(descriptor: int) -> list[bytes]:
    with open(descriptor, "rb") as pipe:
        return [pipe.readline() for _ in range(3)]


@pytest.mark.parametrize(
    "arguments", [("--bork",), ("--broker", "http://x"), ("--broker", "mqtt://x:notaport"), ("--node",)]
)
async def test_bad_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = await llmos_top(tmp_path, *arguments)
    assert (code, out, err.count("\n")) == (2, b"", 1)
    assert err.startswith("llmos-top: ") or "usage" not in err
