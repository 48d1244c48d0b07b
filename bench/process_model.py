"""The whole daemon at 16 streams: ONNX Runtime's threads spinning or not, Python's switch interval at 5 ms or 0.5 ms.
Variants take turns, so that a slow spell hits all. docs/process-model.md has what an engine in a child process gave.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from facts import machine_facts
from load import Load, measure

from llmosd.application import instance
from llmosd.config import default_home

START = """
import sys
sys.setswitchinterval({interval})
from llmosd.application.cli import main
if __name__ == "__main__":
    sys.exit(main(["start", "--port", "0", "--mqtt-port", "0", {flags}]))
"""
SHOWN = ("tokens_per_s", "gap_p99", "step_p50", "step_p99", "loop_lag_p99")


def run_variant(models: Path, spin: bool, interval: float, streams: int, tokens: int) -> Load:
    """One daemon of its own, measured and ended."""
    with tempfile.TemporaryDirectory() as folder:
        home, script = Path(folder), Path(folder) / "start.py"
        (home / "models").symlink_to(models)
        script.write_text(START.format(interval=interval, flags=repr("--spin" if spin else "--no-spin")))
        environment = os.environ | {"LLMOS_HOME": folder}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, script], env=environment, stdout=log, stderr=log)
        try:
            return measure(_address(home, process), streams, tokens)
        finally:
            process.terminate()
            process.wait()


def _address(home: Path, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        record = instance.read(home)
        if record and record.state == "serving":
            return record.http
        time.sleep(0.1)
    raise SystemExit(f"a daemon did not start:\n{(home / 'log').read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the installed model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    variants = list(itertools.product((False, True), (0.005, 0.0005)))
    runs: dict[str, list[Load]] = {}
    for _ in range(args.rounds):
        for spin, interval in variants:
            name = f"{'spin' if spin else 'no spin'}, {1e3 * interval:g} ms"
            models = args.home.absolute() / "models"
            runs.setdefault(name, []).append(run_variant(models, spin, interval, args.streams, args.tokens))
            print(f"{name}: {runs[name][-1].tokens_per_s:.1f} tokens/s", file=sys.stderr, flush=True)
    print("| variant | " + " | ".join(SHOWN) + " |\n|---|" + "---|" * len(SHOWN))
    for name, loads in runs.items():
        medians = (statistics.median(getattr(load, column) for load in loads) for column in SHOWN)
        print(f"| {name} | " + " | ".join(f"{median:.1f}" for median in medians) + " |")
    if args.json:
        measured = {name: [asdict(load) for load in loads] for name, loads in runs.items()}
        args.json.write_text(json.dumps({"machine": asdict(machine_facts()), "runs": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
