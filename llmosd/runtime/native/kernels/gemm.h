// C[rows × columns] (+)= A[rows × depth] · B[depth × columns], float32 accumulation, register tiles.
//
// Each element is one chain of fused multiply-adds in ascending depth, whatever tile it falls into: the result of a row
// does not depend on how many rows are computed with it.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

template <class T>
inline T* offset(T* pointer, int64_t by) {
  return pointer ? pointer + by : nullptr;
}

struct Matrix {
  const float* at;
  int64_t stride;
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

// R rows × C vectors of 8 columns. `ahead`, if any, is prefetched at B's own pace: the memory that is needed after B.
template <int R, int C, bool kAccumulate, class T>
inline void tile(Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, const T* ahead) {
  F8 sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) sums[r][j] = kAccumulate ? load(c + r * c_stride + 8 * j) : zero();
  for (int k = 0; k < depth; ++k) {
    if (ahead)
      for (int j = 0; j < 8 * C; j += kCacheLine / int(sizeof(T))) prefetch(ahead + k * b_stride + j);
    step(sums, a.at + k, a.stride, b + k * b_stride);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) store(c + r * c_stride + 8 * j, sums[r][j]);
}

template <int C, bool kAccumulate, class T>
inline void tile_rows(int rows, Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth,
                      const T* ahead) {
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
                 const T* ahead) {
  int n = 0;
  if (rows <= 3) {
    for (; n + 32 <= columns; n += 32) {
      switch (rows) {
        case 1: tile<1, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, offset(ahead, n)); break;
        case 2: tile<2, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, offset(ahead, n)); break;
        default: tile<3, 4, kAccumulate>(a, b + n, b_stride, c + n, c_stride, depth, offset(ahead, n));
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
                                offset(i ? nullptr : ahead, m));
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
