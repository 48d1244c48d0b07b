// C[rows × columns] (+)= A[rows × depth] · B[depth × columns], float32 accumulation, register tiles.
//
// Each element is one chain of fused multiply-adds in ascending depth, whatever tile it falls into: the result of a row
// does not depend on how many rows are computed with it.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

struct Matrix {
  const float* at;
  int64_t stride;
};

// Memory that is needed after B. It is prefetched in ascending order and at B's own pace.
struct Ahead {
  const char* at = nullptr;
  int64_t bytes = 0;

  Ahead part(int index, int parts) const { return {at + bytes * index / parts, bytes / parts}; }
};

// One step of a tile: the smaller side stays in registers, the other passes through one, so that 12 sums fit beside
// them.
template <int R, int C, class T>
inline void step(F8 (&sums)[R][C], const float* a, int64_t a_stride, const T* b) {
  if constexpr (R <= C) {
    F8 x[R];
    for (int r = 0; r < R; ++r) x[r] = broadcast(a[r * a_stride]);
    for (int j = 0; j < C; ++j) {
      const F8 y = load(b + 8 * j);
      for (int r = 0; r < R; ++r) sums[r][j] = fma(x[r], y, sums[r][j]);
    }
  } else {
    F8 y[C];
    for (int j = 0; j < C; ++j) y[j] = load(b + 8 * j);
    for (int r = 0; r < R; ++r) {
      const F8 x = broadcast(a[r * a_stride]);
      for (int j = 0; j < C; ++j) sums[r][j] = fma(x, y[j], sums[r][j]);
    }
  }
}

// R rows × C vectors of 8 columns.
template <int R, int C, bool kAccumulate, class T>
inline void tile(Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, Ahead ahead) {
  F8 sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) sums[r][j] = kAccumulate ? load(c + r * c_stride + 8 * j) : zero();
  if (!ahead.bytes) {  // a loop of its own: the test inside would cost a sixth
    for (int k = 0; k < depth; ++k) step(sums, a.at + k, a.stride, b + k * b_stride);
  } else {
    const int64_t pace = (uint32_t(ahead.bytes) + depth - 1) / uint32_t(depth);
    for (int k = 0; k < depth; ++k, ahead.at += pace) {
      for (int64_t j = 0; j < pace; j += kCacheLine) prefetch(ahead.at + j);
      step(sums, a.at + k, a.stride, b + k * b_stride);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) store(c + r * c_stride + 8 * j, sums[r][j]);
}

template <int C, bool kAccumulate, class T>
inline void tile_rows(int rows, Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth,
                      Ahead ahead) {
  switch (rows) {
    case 1: return tile<1, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
    case 2: return tile<2, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
    case 3: return tile<3, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
    case 4: return tile<4, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
    case 5: return tile<5, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
    default: return tile<6, C, kAccumulate>(a, b, b_stride, c, c_stride, depth, ahead);
  }
}

// `columns` is a multiple of 16. Few rows take tiles of 32 columns, else each step would wait for its own sum.
template <bool kAccumulate, class T>
inline void gemm(int rows, Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, int columns,
                 Ahead ahead) {
  int n = 0;
  const int passes = rows <= 3 ? (columns + 31) / 32 : columns / 16;
  if (rows <= 3) {
    for (; n + 32 <= columns; n += 32) {
      const Ahead part = ahead.part(n / 32, passes);
      switch (rows) {
        case 1: tile<1, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, part); break;
        case 2: tile<2, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, part); break;
        default: tile<3, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, part);
      }
    }
  }
  if (n == columns) return;
  const int parts = (rows + 5) / 6;  // of even height: a last tile of one or two rows would wait for its own sums
  for (int i = 0; i < parts; ++i) {
    const int r = rows * i / parts, height = rows * (i + 1) / parts - r;
    const Matrix part{a.at + r * a.stride, a.stride};
    for (int m = n; m < columns; m += 16)
      tile_rows<2, kAccumulate>(height, part, b + m, b_stride, c + r * c_stride + m, c_stride, depth,
                                i ? Ahead{} : ahead.part(n ? passes - 1 : m / 16, passes));
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
