"""An engine that dies of a defect ends the daemon: clients are told, the record says why, the exit code is 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from started import MODEL, NODE, PATIENCE_S, Daemon, cli, environment, eventually, serves

from llmosd.errors import LlmosError

DEFECTIVE = f"""
import sys
from llmosd.application import cli
from llmosd.system import kernel

plan = kernel.Kernel.plan

def defective(self, *arguments):
    if self.stats(requests=False).generated_tokens >= 5:
        raise RuntimeError("the sixth token is cursed")
    return plan(self, *arguments)

kernel.Kernel.plan = defective
sys.exit(cli.main(["start", "--port", "0", "--mqtt-port", "0", "--node", "{NODE}"]))
"""


def test_a_dead_engine_ends_the_daemon(home: Path) -> None:
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-c", DEFECTIVE]
        daemon = Daemon(home, subprocess.Popen(command, stdout=log, stderr=log, env=environment(home)))
    eventually(lambda: serves(daemon), "the daemon serves")
    text, told = "", ""
    with daemon.client() as client:
        try:
            for piece in client.chat_stream([{"role": "user", "content": "Hello"}], MODEL, ignore_eos=True):
                text += piece.text
        except LlmosError as exc:
            told = exc.message
    assert text
    assert "the sixth token is cursed" in told
    assert daemon.process.wait(PATIENCE_S) == 1
    assert daemon.record.state == "failed" and "cursed" in daemon.record.error
    assert "cursed" in cli(home, "status").stdout
    (row,) = json.loads(cli(home, "query", "requests", "--json").stdout)
    assert row["state"] == "failed" and "cursed" in row["error"]
