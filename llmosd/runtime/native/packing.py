"""Weights in the order in which the native operators read them (described in kernels/packed.h).

Rows are padded with zeros to whole groups of columns; the operators never write the padding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmosd.errors import ModelError

PACKING = 2
"""Version of these layouts: a stored graph packed by another one has to be packed again."""

BLOCK = 32
COLUMNS = 16
PANEL = 16
GATED = 16
"""Gates, then as many of what they multiply, in the rows of a gated matrix."""

LARGEST = 1000.0
"""Kernels compute weights in float16 with room for 64 times this (kernels/tiles_bf16.h); real ones are below 100."""

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]


def pack_q4(codes: Bytes, scales: Floats, minima: Floats) -> tuple[Bytes, Halves]:
    """Pack 4-bit blocks, weight = scale · code + minimum: codes [N, K] in 0 … 15, scales and minima [N, K / 32].

    Raises ModelError for weights above `LARGEST`.
    """
    if codes.size and int(codes.max()) > 15:
        raise ValueError("4-bit codes must be at most 15")
    _require_range(np.maximum(np.abs(minima), np.abs(15 * scales + minima)))
    blocks = _groups(codes).reshape(-1, COLUMNS, codes.shape[1] // BLOCK, 2, 4, 4)
    nibbles = blocks[:, :, :, 0] | (blocks[:, :, :, 1] << 4)
    packed = nibbles.transpose(0, 2, 3, 1, 4)
    both = np.stack([_by_block(scales), _by_block(minima)], axis=2)
    return np.ascontiguousarray(packed).reshape(-1), both.astype(np.float16).reshape(-1)


def pack_q8(codes: NDArray[np.int8], scales: Floats) -> tuple[Bytes, Halves]:
    """Pack 8-bit blocks, weight = scale · code: codes [N, K], scales [N, K / 32]. Raises ModelError as pack_q4."""
    _require_range(128 * np.abs(scales))
    blocks = _groups(codes.view(np.uint8)).reshape(-1, COLUMNS, codes.shape[1] // BLOCK, 8, 4)
    packed = blocks.transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(packed).reshape(-1), _by_block(scales).astype(np.float16).reshape(-1)


def pack_f32(weight: Floats) -> Floats:
    """Pack float32 weights [N, K] for `Linear`: panels of 16 columns, each [K, 16]."""
    n, k = weight.shape
    padded = np.zeros((-(-n // PANEL) * PANEL, k), np.float32)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, PANEL, k).transpose(0, 2, 1)).reshape(-1)


def _require_range(magnitudes: Floats) -> None:
    largest = float(magnitudes.max(initial=0))
    if not largest <= LARGEST:
        raise ModelError(f"the model has a weight of magnitude {largest:.4g}; up to {LARGEST:.0f} can be computed with")


def _groups(codes: Bytes) -> Bytes:
    n, k = codes.shape
    if k % BLOCK:
        raise ValueError(f"rows must be a multiple of {BLOCK} long, not {k}")
    padded = np.zeros((-(-n // COLUMNS) * COLUMNS, k), np.uint8)
    padded[:n] = codes
    return padded


def _by_block(values: Floats) -> Floats:
    """[N, blocks] → [groups, blocks, 16]."""
    n, blocks = values.shape
    padded = np.zeros((-(-n // COLUMNS) * COLUMNS, blocks), np.float32)
    padded[:n] = values
    return padded.reshape(-1, COLUMNS, blocks).transpose(0, 2, 1)
