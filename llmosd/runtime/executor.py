"""Executes plans on a real model: pack, run, sample, detokenise, decide who has finished."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from llmosd.errors import StepError
from llmosd.runtime.continuation import Continuation
from llmosd.runtime.distribution import Row
from llmosd.runtime.native_sampling import best_sampler, drawn
from llmosd.runtime.packing import Packed, Packer
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.sampling import Draw
from llmosd.runtime.stream import Stream
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.executor import nothing
from llmosd.types import (
    FinishReason,
    Nanoseconds,
    Plan,
    SequenceId,
    SequencePlan,
    SequenceResult,
    SequenceStart,
    StepResult,
    TokenLogprob,
)


class OnnxExecutor:
    """An Executor over a paged model. One thread only.

    A sequence's state advances only after the whole step was run, and sampling can fail but single sequences: so a
    failed plan can be executed again. Page transfers that end beside a failed step are reported by a later one.
    """

    def __init__(
        self,
        model: PagedModel,
        tokenizer: Tokenizer,
        page_table: array[int],
        columns: int,
        transfers: PageTransfers | None = None,
    ) -> None:
        """`page_table` is the kernel's flat array with rows of `columns` pages, read at each step.

        Without `transfers` plans may not ask for any.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._packer = Packer(page_table, columns, model.page_tokens)
        self._vocab = min(model.geometry.vocab, tokenizer.vocab_size)  # rows of logits may be padded beyond the tokens
        self._sampler = best_sampler(model.threads)
        self._transfers = transfers
        self._sequences: dict[SequenceId, _Sequence] = {}

    def execute(self, plan: Plan, meanwhile: Callable[[], None] = nothing) -> StepResult:
        """Raises StepError where the run failed; logits that are not finite end their own sequence only."""
        began = time.perf_counter_ns()
        self._prepare(plan)
        results, run_ns = tuple[SequenceResult, ...](), 0
        if plan.sequences:
            results, run_ns = self._step(plan.sequences, meanwhile)
        else:
            meanwhile()
        finished = self._transfers.finished(at_least_one=not plan.sequences) if self._transfers else ()
        return StepResult(plan.step, results, run_ns, time.perf_counter_ns() - began, finished)

    def _prepare(self, plan: Plan) -> None:
        for sequence in plan.ended:
            self._sequences.pop(sequence, None)
        for start in plan.started:
            self._sequences[start.sequence] = _Sequence(start, self._tokenizer, self._vocab)
        for copy in plan.copies:
            self._model.copy_page(copy.source, copy.target)
        if self._transfers:
            self._transfers.start(plan)
        else:
            assert not plan.page_outs and not plan.page_ins, "pages are to be swapped without a swap file"

    def _step(
        self, parts: tuple[SequencePlan, ...], meanwhile: Callable[[], None]
    ) -> tuple[tuple[SequenceResult, ...], Nanoseconds]:
        """Run all sequences and sample those that are to be."""
        streams = [self._stream(part) for part in parts if part.sample]
        packed = self._packer.pack(parts, [stream.address for stream in streams])
        meanwhile()
        logits, run_ns = self._run(packed)
        return self._sample(parts, streams, packed.firsts, logits), run_ns

    def _run(self, packed: Packed) -> tuple[Row, Nanoseconds]:
        began = time.perf_counter_ns()
        logits = self._model.run(
            packed.token_ids,
            packed.cumulative_lengths,
            packed.past_lengths,
            packed.page_table,
            packed.logit_rows,
            packed.streams,
        )
        return logits, self._model.ended - began

    def _stream(self, part: SequencePlan) -> Stream:
        stream = self._sequences[part.sequence].stream
        at = part.past + len(part.tokens) - part.drafts
        assert stream.position == at, f"sequence {part.sequence} is sampled out of turn"
        return stream

    def _sample(
        self, parts: tuple[SequencePlan, ...], streams: list[Stream], firsts: list[int], logits: Row
    ) -> tuple[SequenceResult, ...]:
        """What the step gives each sequence. `firsts` are the rows of logits that each stream's first token is of."""
        draws = iter(self._draw(streams, firsts, logits))
        results = [self._result(part, next(draws)) if part.sample else SequenceResult(part.sequence) for part in parts]
        if len(logits) > len(streams):
            self._go_on(parts, firsts, logits, results)
        return tuple(results)

    def _draw(self, streams: list[Stream], rows: list[int], logits: Row) -> list[Draw | StepError]:
        if not rows:
            return []
        if not self._model.draws:
            return self._sampler.draw_rows(_take(logits, rows), streams)
        tokens = self._model.tokens.tolist()
        return drawn(tokens if len(tokens) == len(rows) else [tokens[row] for row in rows], streams)

    def _go_on(
        self, parts: tuple[SequencePlan, ...], firsts: list[int], logits: Row, results: list[SequenceResult]
    ) -> None:
        """Draw the tokens after the guesses that were right: what follows one, then what follows the next, and so on.

        What is drawn depends on the sequence's own history alone, so right guesses give the tokens that single steps
        would have given.
        """
        sampled = [place for place, part in enumerate(parts) if part.sample]
        wave, ahead = list(zip(sampled, firsts, strict=True)), 0
        while wave := [(place, row) for place, row in wave if _is_right(parts[place], results[place])]:
            ahead += 1
            streams = [self._sequences[parts[place].sequence].stream for place, _ in wave]
            draws = self._sampler.draw_rows(_take(logits, [row + ahead for _, row in wave]), streams)
            for (place, _), draw in zip(wave, draws, strict=True):
                results[place] = _join(results[place], self._result(parts[place], draw))

    def _result(self, part: SequencePlan, draw: Draw | StepError) -> SequenceResult:
        if isinstance(draw, StepError):
            return SequenceResult(part.sequence, error=draw.message)
        text, finish = self._sequences[part.sequence].accept(draw.token)
        logprobs = () if draw.logprob is None else (TokenLogprob(draw.token, draw.logprob, draw.top),)
        return SequenceResult(part.sequence, (draw.token,), text, logprobs, finish)


class _Sequence:
    """What the executor keeps of one sequence between steps; preemption does not touch it."""

    def __init__(self, start: SequenceStart, tokenizer: Tokenizer, vocab: int) -> None:
        self.stream = Stream(start, vocab)
        self._continuation = Continuation(start.sampling, tokenizer)
        for token in start.generated:
            self.accept(token)

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Move on by one token: the text that became safe with it, and whether the sequence ends here."""
        self.stream.accept(token)
        return self._continuation.accept(token)


def _is_right(part: SequencePlan, result: SequenceResult) -> bool:
    """Whether the last token drawn is the guess that was fed in its place, and not the sequence's last."""
    ahead = len(result.tokens) - 1
    return 0 <= ahead < part.drafts and not result.finish and result.tokens[ahead] == part.tokens[ahead - part.drafts]


def _join(first: SequenceResult, then: SequenceResult) -> SequenceResult:
    if then.error is not None:
        return then
    tokens, logprobs = first.tokens + then.tokens, first.logprobs + then.logprobs
    return SequenceResult(first.sequence, tokens, first.text + then.text, logprobs, then.finish)


def _take(logits: Row, rows: list[int]) -> Row:
    """These rows, rising; without a copy where they are neighbours."""
    together = rows[-1] - rows[0] == len(rows) - 1
    return logits[rows[0] : rows[-1] + 1] if together else logits[rows]
