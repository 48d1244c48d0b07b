"""One model ready to run: a graph's session, and the page pool that the graph reads and writes."""

from __future__ import annotations

from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmosd.errors import ModelError
from llmosd.runtime.backend import Backend, check_kv_format, choose_backend, choose_kv_format, variant_name
from llmosd.runtime.device_pool import DevicePool, attention_metadata
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.host_rows import HostRows
from llmosd.runtime.installed import InstalledModel
from llmosd.runtime.page_bytes import PageBytes
from llmosd.runtime.page_pool import HostPool, Pool, bytes_per_page, check_pages, pages_that_fit
from llmosd.runtime.session import BoundSession, open_session
from llmosd.types import KvFormat, Nanoseconds, WeightFormat

__all__ = [
    "Backend",
    "KvFormat",
    "PagedModel",
    "choose_backend",
    "choose_kv_format",
    "pages_that_fit",
    "variant_name",
]

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
F32 = NDArray[np.float32]

INPUTS = ("token_ids", "cumulative_lengths", "past_lengths", "page_table", "logit_rows", "streams")


class PagedModel:
    """Not thread-safe: one owner runs steps one after the other. Raises ModelError where it cannot be loaded."""

    def __init__(
        self,
        graph: Path,
        geometry: Geometry,
        *,
        backend: Backend,
        weights: WeightFormat,
        pages: int,
        page_tokens: int,
        threads: int,
        spin: bool,
        kv_format: KvFormat,
        strict: bool = False,
    ) -> None:
        """`strict`: what a token gets does not depend on the tokens beside it in a run."""
        check_kv_format(backend, kv_format)
        self.geometry = geometry
        self.backend: Backend = backend
        self.weights: WeightFormat = weights
        self.kv_format: KvFormat = kv_format
        self.pages, self.page_tokens, self.threads = pages, page_tokens, threads
        self.draws = backend == "native"  # a run can draw tokens too
        self._open_session = partial(open_session, graph, backend, kv_format, threads, spin, strict)
        self._pool: Pool
        self._rows: HostRows | None = None
        if backend == "cuda":
            self._pool = DevicePool(geometry, pages=pages, page_tokens=page_tokens, device="cuda")
        else:
            self._pool = host = HostPool(geometry, pages=pages, page_tokens=page_tokens, kv_format=kv_format)
            self._rows = HostRows(geometry, host) if backend == "gather" else None
        self._session = self._open()

    def _open(self) -> BoundSession:
        copies = self.backend == "cuda"
        session = BoundSession(self._open_session(), self.geometry.vocab, copies=copies, draws=self.draws)
        for name, array in self._pool.inputs():
            session.bind(name, array)
        self._inputs: tuple[NDArray[Any] | None, ...] = (None,) * len(INPUTS)  # of a step, as they are bound
        return session

    @classmethod
    def load(
        cls,
        model: InstalledModel,
        *,
        backend: Backend,
        weights: WeightFormat,
        pages: int,
        page_tokens: int,
        threads: int,
        spin: bool,
        kv_format: KvFormat = "float16",
        strict: bool = False,
    ) -> PagedModel:
        """Load the graph of a variant that has been built (`importer.ensure_graph`)."""
        graph = model.graph(variant_name(backend, weights))
        if not graph.is_file():
            raise ModelError(f"model {model.id} has no {graph.parent.name} graph: run `llmosd models pull {model.id}`")
        return cls(
            graph,
            model.geometry,
            backend=backend,
            weights=weights,
            pages=pages,
            page_tokens=page_tokens,
            threads=threads,
            spin=spin,
            kv_format=kv_format,
            strict=strict,
        )

    @property
    def keys(self) -> list[Any]:
        """By layer; in place, as the graph sees them."""
        return self._pool.keys

    @property
    def values(self) -> list[Any]:
        return self._pool.values

    @property
    def page_bytes(self) -> PageBytes | None:
        """The pages' contents, where they lie in this process's memory."""
        return self._pool.bytes if isinstance(self._pool, HostPool) else None

    @property
    def bytes_per_page(self) -> int:
        return bytes_per_page(self.geometry, self.page_tokens, self.kv_format)

    @property
    def run_ns(self) -> Nanoseconds:
        """Of the last run inside ONNX Runtime, without the way back where that is known."""
        return self._session.run_ns

    @property
    def tokens(self) -> Int64:
        """What the last run drew from each row of logits, NO_TOKEN where it drew nothing; only where it `draws`."""
        return self._session.tokens

    def run(
        self,
        token_ids: Int64,
        cumulative_lengths: Int32,
        past_lengths: Int32,
        page_table: Int32,
        logit_rows: Int64,
        streams: Int64 | None = None,
    ) -> F32:
        """One step over packed tokens; logits [R, vocab] of the packed rows `logit_rows`.

        Sequence b owns tokens cumulative_lengths[b] … cumulative_lengths[b+1]−1 and puts them at positions from
        past_lengths[b] on, in the pages that row b of `page_table` names. Its K and V are in the pool afterwards.
        `streams` has the address of a Stream for each row of logits that a token is to be drawn from, else 0; they must
        live as long as the call. The result is a view into a buffer that the next run overwrites. Raises StepError with
        the operator's words.
        """
        if self.backend != "native":
            check_pages(self._pool, cumulative_lengths, past_lengths, page_table)
        if self._rows:
            self._rows.bind(self._session, len(token_ids))
        if self.backend == "cuda":
            self._session.bind("attention_metadata", attention_metadata(cumulative_lengths, past_lengths))
        if not self.draws:
            streams = None
        elif streams is None:
            streams = np.zeros(len(logit_rows), np.int64)
        inputs = (token_ids, cumulative_lengths, past_lengths, page_table, logit_rows, streams)
        if self._session.copies or any(map(is_not, inputs, self._inputs)):
            self._bind(inputs)
        logits = self._session.bind_logits(len(logit_rows))
        self._session.run()
        if self._rows:
            self._rows.store(cumulative_lengths, past_lengths, page_table)
        return logits

    def _bind(self, inputs: tuple[NDArray[Any] | None, ...]) -> None:
        for name, array in zip(INPUTS, inputs, strict=True):
            if array is not None:
                self._session.bind(name, array)
        self._inputs = inputs

    def copy_page(self, source: int, target: int) -> None:
        """K and V of all layers of one page to another."""
        self._pool.copy_page(source, target)

    def resize(self, pages: int) -> None:
        """Only the first so many pages are used from now on; the memory of the others is given back if it can be."""
        self._pool.resize(pages)

    def unload(self) -> None:
        """Give back all memory: weights, workspace, what is in the pages. Nothing runs until `reload`."""
        self._session.close()
        self._pool.resize(0)
        if isinstance(self._pool, DevicePool):
            self._pool.clear()

    def reload(self, pages: int) -> None:
        """Be as new, with a pool of so many pages at the addresses it had. Raises ModelError."""
        if isinstance(self._pool, DevicePool):
            self._pool = DevicePool(self.geometry, pages=self.pages, page_tokens=self.page_tokens, device="cuda")
        self._pool.resize(pages)
        self._session = self._open()

    def close(self) -> None:
        """Give back the session and the pool; the model cannot run afterwards."""
        self._session.close()
        self._pool.clear()
