"""A gentle load on a daemon, watched in llmos-top: people who ask now and then, one every two seconds on average.

Uses the daemon that runs, else starts one and stops it at the end. Quit with `q`.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

from llmosd import config
from llmosd.application import instance
from llmosd.application.cli import daemon, options
from llmosd.application.client import Client
from llmosd.errors import LlmosError

MEAN_GAP_S = 2.0
PEOPLE = ("ada", "grace", "linus", "edsger")
QUESTIONS = (
    "Why is the sky blue?",
    "Write a haiku about virtual memory.",
    "Explain a semaphore to a child.",
    "Tell me a short story about a lighthouse.",
    "What is the difference between a process and a thread?",
)


def ask(url: str, chance: random.Random) -> None:
    """One question, answered to its end; a daemon that refuses or is gone is no reason to stop the show."""
    messages = [{"role": "user", "content": chance.choice(QUESTIONS)}]
    person, nice, length = chance.choice(PEOPLE), chance.choice((0, 0, 0, 5, -5)), chance.randint(30, 200)
    try:
        with Client(url) as client:
            for _ in client.chat_stream(messages, client.models()[0], user=person, priority=nice, max_tokens=length):
                pass
    except LlmosError:
        return


def load(url: str, over: threading.Event) -> None:
    """Poisson arrivals until `over`."""
    chance = random.Random(1)
    while not over.wait(chance.expovariate(1 / MEAN_GAP_S)):
        threading.Thread(target=ask, args=(url, random.Random(chance.random())), daemon=True).start()


def main() -> int:
    settings, over = config.load(), threading.Event()
    own = instance.running(settings.home) is None
    url = daemon.detach(settings).http if own else options.http_url(settings)
    threading.Thread(target=load, args=(url, over), daemon=True).start()
    try:
        return subprocess.call([Path(sys.executable).with_name("llmos-top")])
    finally:
        over.set()
        if own:
            subprocess.call([sys.executable, "-m", "llmosd", "stop", "--now"])


if __name__ == "__main__":
    raise SystemExit(main())
