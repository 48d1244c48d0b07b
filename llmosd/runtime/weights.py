"""Weight matrices in the precision of the file they came from, blocks of 32 along a row as GGML has them.

A matrix is [N, K]: N outputs, K inputs. Rows are independent, so they can be permuted and matrices stacked
without touching a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
SLICE = 4096  # rows rounded at a time: rounding a whole vocabulary would need several times its memory

F32 = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Affine4:
    """value = scale · code + minimum, codes 0 … 15 (Q4_1; Q4_0 with minimum = −8 · scale)."""

    codes: NDArray[np.uint8]  # [N, K]
    scales: F32  # [N, K/32]
    minima: F32  # [N, K/32]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, index: Index) -> Affine4:
        return Affine4(self.codes[index], self.scales[index], self.minima[index])

    def dense(self) -> F32:
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, columns // BLOCK, BLOCK).astype(np.float32)
        blocks *= self.scales[..., None]
        blocks += self.minima[..., None]
        return blocks.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Symmetric8:
    """value = scale · code, codes −127 … 127 (Q8_0)."""

    codes: NDArray[np.int8]  # [N, K]
    scales: F32  # [N, K/32]

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, index: Index) -> Symmetric8:
        return Symmetric8(self.codes[index], self.scales[index])

    def dense(self) -> F32:
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, columns // BLOCK, BLOCK) * self.scales[..., None]
        return blocks.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Dense:
    """Plain float32 values: tensors stored as floats, and those of formats that no kernel reads directly."""

    values: F32  # [N, K]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def rows(self, index: Index) -> Dense:
        return Dense(self.values[index])

    def dense(self) -> F32:
        return self.values


Matrix = Affine4 | Symmetric8 | Dense


def stack(parts: Sequence[Matrix]) -> Matrix:
    """The parts' rows one after the other; parts of different formats meet as float32."""
    if all(isinstance(part, Affine4) for part in parts):
        same4 = [part for part in parts if isinstance(part, Affine4)]
        return Affine4(
            np.concatenate([p.codes for p in same4]),
            np.concatenate([p.scales for p in same4]),
            np.concatenate([p.minima for p in same4]),
        )
    if all(isinstance(part, Symmetric8) for part in parts):
        same8 = [part for part in parts if isinstance(part, Symmetric8)]
        return Symmetric8(np.concatenate([p.codes for p in same8]), np.concatenate([p.scales for p in same8]))
    return Dense(np.concatenate([part.dense() for part in parts]))


def to_symmetric8(values: F32) -> Symmetric8:
    """Round to 8 bits: the scale of a block is its largest magnitude / 127."""
    parts = [_rounded(values[start : start + SLICE]) for start in range(0, len(values), SLICE)]
    return Symmetric8(np.concatenate([p.codes for p in parts]), np.concatenate([p.scales for p in parts]))


def _rounded(values: F32) -> Symmetric8:
    rows, columns = values.shape
    blocks = values.reshape(rows, columns // BLOCK, BLOCK)
    scales = (np.abs(blocks).max(axis=-1) / 127).astype(np.float16).astype(np.float32)
    codes = np.rint(blocks / np.where(scales == 0, 1, scales)[..., None])
    return Symmetric8(np.clip(codes, -127, 127).astype(np.int8).reshape(rows, columns), scales)
