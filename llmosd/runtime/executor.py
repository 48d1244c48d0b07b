"""Executes plans on a real model: pack, run, sample, detokenise, decide who has finished."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from llmosd.runtime.continuation import Continuation
from llmosd.runtime.distribution import NOT_FINITE, Row
from llmosd.runtime.native_sampling import best_sampler
from llmosd.runtime.packing import Packed, Packer
from llmosd.runtime.page_bytes import PageBytes
from llmosd.runtime.page_transfers import PageTransfers
from llmosd.runtime.paged_model import PagedModel
from llmosd.runtime.stream import NO_TOKEN, Stream
from llmosd.runtime.tokenizer import Tokenizer
from llmosd.system.executor import nothing
from llmosd.types import (
    Nanoseconds,
    PageCopy,
    Plan,
    SequenceId,
    SequencePlan,
    SequenceResult,
    SequenceStart,
    StepResult,
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

    def interrupt(self) -> None:
        if self._transfers:
            self._transfers.interrupt()

    # ---- memory

    def resize(self, pages: int, copies: Sequence[PageCopy] = ()) -> None:
        for copy in copies:
            self._model.copy_page(copy.source, copy.target)
        self._model.resize(pages)

    def unload(self) -> None:
        """Give the model's memory back; what is known of sequences stays."""
        self._model.unload()

    def reload(self, pages: int) -> None:
        """Raises ModelError."""
        self._model.reload(pages)

    # ---- as a PageStore

    def bytes_per_page(self, model: str) -> int:
        return self._model.page_bytes.size if self._model.page_bytes else 0

    def read_pages(self, model: str, pages: Sequence[int]) -> memoryview:
        access = self._page_bytes()
        contents = np.empty((len(pages), access.size), np.uint8)
        for page, buffer in zip(pages, contents, strict=True):
            access.gather(page, buffer)
        return contents.reshape(-1).data

    def write_pages(self, model: str, pages: Sequence[int], contents: Sequence[memoryview]) -> None:
        access = self._page_bytes()
        for page, data in zip(pages, contents, strict=True):
            access.scatter(page, np.frombuffer(data, np.uint8))

    def _page_bytes(self) -> PageBytes:
        assert self._model.page_bytes is not None, "these pages are out of reach"
        return self._model.page_bytes

    # ---- steps

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
        streams = self._streams(parts)
        packed = self._packer.pack(parts, [stream.address if stream else 0 for stream in streams])
        meanwhile()
        logits = self._run(packed)
        tokens = self._model.tokens.tolist() if self._model.draws else self._draw(streams, logits)
        results, row = [], 0
        for part in parts:
            if part.sample:
                result = self._result(part.sequence, tokens[row])
                results.append(self._go_on(result, part, tokens, row, logits) if part.drafts else result)
                row += 1 + part.drafts
            else:
                results.append(SequenceResult(part.sequence))
        return tuple(results), self._model.run_ns

    def _streams(self, parts: tuple[SequencePlan, ...]) -> list[Stream | None]:
        """For each row of logits who draws from it; None where that depends on what is drawn before."""
        streams = list[Stream | None]()
        for part in parts:
            if part.sample:
                stream = self._sequences[part.sequence].stream
                at = part.past + len(part.tokens) - part.drafts
                assert stream.position == at, f"sequence {part.sequence} is sampled out of turn"
                streams.append(stream)
                if part.drafts:
                    streams += [stream if stream.memoryless else None] * part.drafts
        return streams

    def _run(self, packed: Packed) -> Row:
        return self._model.run(
            packed.token_ids,
            packed.cumulative_lengths,
            packed.past_lengths,
            packed.page_table,
            packed.logit_rows,
            packed.streams,
        )

    def _draw(self, streams: list[Stream | None], logits: Row) -> list[int]:
        """The token of each row that has a stream, where the run has drawn none."""
        asked = [(row, stream) for row, stream in enumerate(streams) if stream]
        tokens = [NO_TOKEN] * len(streams)
        if not asked:
            return tokens
        drawn = self._sampler.draw_rows(_take(logits, [row for row, _ in asked]), [stream for _, stream in asked])
        for (row, _), token in zip(asked, drawn, strict=True):
            tokens[row] = token
        return tokens

    def _result(self, id: SequenceId, token: int) -> SequenceResult:
        """The sequence moves on by the token that was drawn for it."""
        if token == NO_TOKEN:
            return SequenceResult(id, error=NOT_FINITE)
        sequence = self._sequences[id]
        stream = sequence.stream
        logprobs = stream.logprobs(token)
        stream.accept(token)
        text, finish = sequence.continuation.accept(token)
        return SequenceResult(id, (token,), text, logprobs, finish)

    def _go_on(
        self, result: SequenceResult, part: SequencePlan, tokens: list[int], row: int, logits: Row
    ) -> SequenceResult:
        """With the token after the first guess if that was right, the one after the second, and so on.

        `tokens` holds what was drawn from the rows of logits, of which the part's first is `row`: all a memoryless
        stream needs. What is drawn depends on the sequence's own history alone, so right guesses give the tokens that
        single steps would have given.
        """
        stream = self._sequences[part.sequence].stream
        for ahead, guess in enumerate(part.tokens[-part.drafts :], 1):
            if result.finish or result.error or result.tokens[-1] != guess:
                break
            if not stream.memoryless:
                (tokens[row + ahead],) = self._sampler.draw_rows(logits[row + ahead : row + ahead + 1], [stream])
            result = _join(result, self._result(part.sequence, tokens[row + ahead]))
        return result


class _Sequence:
    """What the executor keeps of one sequence between steps; preemption does not touch it."""

    __slots__ = ("continuation", "stream")

    def __init__(self, start: SequenceStart, tokenizer: Tokenizer, vocab: int) -> None:
        self.stream = Stream(start, vocab)
        self.continuation = Continuation(start.sampling, tokenizer)
        for token in start.generated:
            self.stream.accept(token)
            self.continuation.accept(token)


def _join(first: SequenceResult, then: SequenceResult) -> SequenceResult:
    if then.error is not None:
        return then
    tokens, logprobs = first.tokens + then.tokens, first.logprobs + then.logprobs
    return SequenceResult(first.sequence, tokens, first.text + then.text, logprobs, then.finish)


def _take(logits: Row, rows: list[int]) -> Row:
    """These rows, rising; without a copy where they are neighbours."""
    together = rows[-1] - rows[0] == len(rows) - 1
    return logits[rows[0] : rows[-1] + 1] if together else logits[rows]
