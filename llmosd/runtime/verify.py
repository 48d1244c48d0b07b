"""Is a graph right? It is fed a continuation that a float32 reference found, and must find each token (nearly) best.

A token that the reference chose need not be the argmax of a graph with 4-bit weights and 8-bit activations, for near
ties turn; but its logit must lie within a small distance of the maximum.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmosd.errors import ModelError
from llmosd.runtime.backend import best_page_tokens, choose_kv_format
from llmosd.runtime.catalogue import Golden
from llmosd.runtime.geometry import Geometry
from llmosd.runtime.paged_model import Backend, PagedModel
from llmosd.types import WeightFormat

TOLERANCE: dict[WeightFormat, float] = {"float32": 1e-3, "file": 0.5}  # logits; near ties may turn by the second


def verify_graph(graph: Path, geometry: Geometry, golden: Golden, *, backend: Backend, weights: WeightFormat) -> float:
    """The worst golden token's distance from the best; raises ModelError where it is more than the tolerance."""
    tokens = len(golden.prompt) + len(golden.continuation)
    page_tokens = best_page_tokens(backend, geometry)
    model = PagedModel(
        graph,
        geometry,
        backend=backend,
        weights=weights,
        pages=-(-tokens // page_tokens),
        page_tokens=page_tokens,
        threads=1,
        spin=False,
        kv_format="float32" if weights == "float32" else choose_kv_format(backend, "auto"),
    )
    gaps = golden_gaps(model, golden)
    model.close()
    worst = float(gaps.max())
    if not worst <= TOLERANCE[weights]:  # so written that NaN fails
        raise ModelError(
            f"the graph does not reproduce the model: a token of the golden continuation lies {worst:.3g} below the "
            f"best, more than {TOLERANCE[weights]:g}"
        )
    return worst


def golden_gaps(model: PagedModel, golden: Golden) -> NDArray[np.float32]:
    """For each golden token, how far its logit lies below the maximum; the pool's first pages are used."""
    ids = np.array(golden.prompt + golden.continuation[:-1], np.int64)
    table = np.arange(-(-len(ids) // model.page_tokens), dtype=np.int32)[None]
    rows = np.arange(len(golden.prompt) - 1, len(ids))
    logits = model.run(ids, np.array([0, len(ids)], np.int32), np.zeros(1, np.int32), table, rows)
    chosen = logits[np.arange(len(rows)), list(golden.continuation)]
    gaps: NDArray[np.float32] = logits.max(axis=1) - chosen
    return gaps
