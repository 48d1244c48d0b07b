"""Guesses leave the distribution of what is sampled as it is, whether they are right or wrong.

A guess counts when the sampler draws it itself: with probability p(guess), and else another token comes with its own
probability. That is rejection sampling for guesses that are certain of themselves (Leviathan et al., "Fast Inference
from Transformers via Speculative Decoding", 2023, with q(guess) = 1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from llmosd.runtime import native
from llmosd.runtime.executor import OnnxExecutor
from llmosd.runtime.gguf_reader import GgufFile
from llmosd.runtime.tokenizer import Tokenizer, tokenizer_json, tokenizer_meta
from llmosd.system.kernel import Kernel, Limits
from llmosd.system.policy import POLICIES
from llmosd.system.request import Sequence as Continuation
from llmosd.system.speculation import Speculation
from llmosd.types import Output, RequestSpec, Sampling
from tests.runtime import tiny
from tests.runtime.stepping import prefill

PROMPT, TEMPERATURE, REQUESTS = [*range(5, 25)], 0.4, 3000
PAGES, PAGE_TOKENS = 128, 32

pytestmark = pytest.mark.skipif(not native.status().available, reason="the native operators cannot be built here")


class Always(Speculation):
    """Guesses the same token behind every sequence's last one."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self._token = token

    def guesses(
        self, decoding: Sequence[Continuation], room: Callable[[Continuation], int], left: int
    ) -> list[list[int]]:
        return [[self._token] * min(1, room(sequence)) for sequence in decoding]


class Small:
    """A small model in float32, and what it says."""

    def __init__(self, folder: Path) -> None:
        source = GgufFile(tiny.write_tiny(folder / "tiny.gguf", Kind.F16))
        sizes = {"pages": PAGES, "page_tokens": PAGE_TOKENS}
        self.model = tiny.load(folder / "model.onnx", source, "native", "float32", **sizes, strict=True)
        self._tokenizer = Tokenizer(
            tokenizer_json(source.tokenizer), tokenizer_meta(source.tokenizer, source.geometry.eos)
        )

    def probabilities(self, behind: Sequence[int]) -> NDArray[np.float64]:
        logits = prefill(self.model, [*PROMPT, *behind], [0, 1])[-1].astype(np.float64) / TEMPERATURE
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def sample(self, speculation: Speculation | None) -> list[tuple[int, ...]]:
        """Three tokens for each seed."""
        kernel = Kernel(Limits(64, 1500, REQUESTS, 64, PAGE_TOKENS, PAGES), POLICIES["fcfs"](), speculation)
        executor = OnnxExecutor(self.model, self._tokenizer, kernel.page_table, kernel.columns)
        for seed in range(REQUESTS):
            sampling = Sampling(temperature=TEMPERATURE, seed=seed, max_tokens=3, ignore_eos=True)
            kernel.submit(RequestSpec(str(seed), "m", PROMPT, sampling), 0)
        told = [()] * REQUESTS
        while plan := kernel.plan(0):
            for event in kernel.commit(plan, executor.execute(plan), 0):
                if isinstance(event, Output):
                    told[int(event.id)] += event.tokens
        return told


def assert_drawn_from(drawn: Sequence[int], p: NDArray[np.float64]) -> None:
    """Chi-square, bound at p = 0.001 (Wilson-Hilferty); all that is expected less than 8 times counts as one."""
    counts, expected = Counter(drawn), p * len(drawn)
    cells = [token for token in range(len(p)) if expected[token] >= 8]
    observed = [(counts[token], expected[token]) for token in cells]
    observed.append((len(drawn) - sum(n for n, _ in observed), len(drawn) - sum(e for _, e in observed)))
    statistic, freedom = sum((n - e) ** 2 / e for n, e in observed), len(cells)
    assert freedom >= 2, "the distribution has no spread to compare"
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_sampling_with_guesses_follows_the_models_distribution(tmp_path: Path) -> None:
    small = Small(tmp_path)
    first = int(small.probabilities([]).argmax())
    after_first = small.probabilities([first])
    guess = int(after_first.argmax())
    speculation = Always(guess)
    told = small.sample(speculation)
    assert told == small.sample(None), "each seed's own tokens"
    seconds = [b for a, b, _ in told if a == first]
    assert_drawn_from([a for a, _, _ in told], small.probabilities([]))
    assert_drawn_from(seconds, after_first)
    assert_drawn_from([c for a, b, c in told if (a, b) == (first, guess)], small.probabilities([first, guess]))
    right = sum(b == guess for _, b, _ in told)
    assert 0 < speculation.accepted == right < speculation.drafted
    small.model.close()
