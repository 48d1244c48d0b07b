"""The child's end of the comparison: an engine behind lines of JSON on standard input and output.

Runs under the peer's own interpreter, so it needs nothing but the standard library and numpy. A request is
`[method, arguments…]`; the answer is `{"seconds": …}` for what is timed and `{"values": …}` for all else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """One engine with one set of weights. Token choice is greedy throughout; sequences share no K/V."""

    def fill(self, batch: int, context: int) -> None:
        """Have `batch` sequences of `context` tokens, and place for 128 more tokens each."""

    def rewind(self) -> None:
        """Bring the sequences back to what `fill` left, and forget every other one. Not timed."""

    def decode(self, steps: int) -> None:
        """All sequences take `steps` steps together, each feeding the token chosen before. Timed."""

    def prefill(self, tokens: int) -> None:
        """Feed one new prompt and choose the token after it. Timed, alone."""

    def mixed(self, tokens: int) -> None:
        """Feed one new prompt and choose the token after it, while each sequence takes a step. Timed."""

    def score(self, window: list[int]) -> list[float]:
        """Log loss in nats of each token of the window after its first."""


TIMED = ("decode", "prefill", "mixed")


def serve(make: Callable[[], Engine]) -> None:
    """Answer requests until standard input ends. What the engine itself prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = make()
    print("{}", file=answers)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(_answer(engine, name, arguments)), file=answers)


def _answer(engine: Engine, name: str, arguments: list[Any]) -> dict[str, Any]:
    if name not in TIMED:
        return {"values": getattr(engine, name)(*arguments)}
    engine.rewind()
    began = time.perf_counter()
    getattr(engine, name)(*arguments)
    return {"seconds": time.perf_counter() - began}


def prompt(tokens: int) -> list[int]:
    """Token ids of ordinary words, the same for each engine."""
    return [1000 + 17 * number % 40000 for number in range(tokens)]
