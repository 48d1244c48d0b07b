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

  Ahead part(int from, int width, int whole) const { return {at + bytes * from / whole, bytes * width / whole}; }
};

// One step of a tile: the smaller side stays in registers, the other passes through one, so that kSums sums fit beside
// them.
template <int R, int C, class T>
inline void step(F (&sums)[R][C], const float* a, int64_t a_stride, const T* b) {
  if constexpr (R <= C) {
    F x[R];
    for (int r = 0; r < R; ++r) x[r] = broadcast(a[r * a_stride]);
    for (int j = 0; j < C; ++j) {
      const F y = load(b + kLanes * j);
      for (int r = 0; r < R; ++r) sums[r][j] = fma(x[r], y, sums[r][j]);
    }
  } else {
    F y[C];
    for (int j = 0; j < C; ++j) y[j] = load(b + kLanes * j);
    for (int r = 0; r < R; ++r) {
      const F x = broadcast(a[r * a_stride]);
      for (int j = 0; j < C; ++j) sums[r][j] = fma(x, y[j], sums[r][j]);
    }
  }
}

// R rows × C vectors of columns.
template <int R, int C, bool kAccumulate, class T>
inline void tile(Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, Ahead ahead) {
  F sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) sums[r][j] = kAccumulate ? load(c + r * c_stride + kLanes * j) : zero();
  if (!ahead.bytes) {  // a loop of its own: the test inside would cost a sixth
    for (int k = 0; k < depth; ++k) step(sums, a.at + k, a.stride, b + k * b_stride);
  } else {
    const int64_t pace = (uint32_t(ahead.bytes) + depth - 1) / uint32_t(depth);
    for (int k = 0; k < depth; ++k, ahead.at += pace) {
      prefetch(ahead.at, pace);
      step(sums, a.at + k, a.stride, b + k * b_stride);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) store(c + r * c_stride + kLanes * j, sums[r][j]);
}

// As many columns as there are whole tiles of `rows` rows × C vectors, from column `from` on; returns where it stopped.
template <int R, int C, bool kAccumulate, class T>
inline int tiles(int from, Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, int columns,
                 Ahead ahead) {
  constexpr int kWidth = C * kLanes;
  for (; from + kWidth <= columns; from += kWidth)
    tile<R, C, kAccumulate>(a, b + from, b_stride, c + from, c_stride, depth, ahead.part(from, kWidth, columns));
  return from;
}

// Few rows take wide tiles, else each step would wait for its own sum.
template <int R, bool kAccumulate, class T>
inline void rows(Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, int columns,
                 Ahead ahead) {
  int n = 0;
  if constexpr (4 * R <= kSums)
    n = tiles<R, 4, kAccumulate>(n, a, b, b_stride, c, c_stride, depth, columns, ahead);
  n = tiles<R, 2, kAccumulate>(n, a, b, b_stride, c, c_stride, depth, columns, ahead);
  if constexpr (kLanes == 16) tiles<R, 1, kAccumulate>(n, a, b, b_stride, c, c_stride, depth, columns, ahead);
}

// `columns` is a multiple of 16.
template <bool kAccumulate, class T>
inline void gemm(int count, Matrix a, const T* b, int64_t b_stride, float* c, int64_t c_stride, int depth, int columns,
                 Ahead ahead) {
  const int parts = (count + 5) / 6;  // of even height: a last tile of one or two rows would wait for its own sums
  for (int i = 0; i < parts; ++i) {
    const int r = count * i / parts;
    const Matrix part{a.at + r * a.stride, a.stride};
    float* const to = c + r * c_stride;
    const Ahead next = i ? Ahead{} : ahead;
    switch (count * (i + 1) / parts - r) {
      case 1: rows<1, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next); break;
      case 2: rows<2, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next); break;
      case 3: rows<3, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next); break;
      case 4: rows<4, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next); break;
      case 5: rows<5, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next); break;
      default: rows<6, kAccumulate>(part, b, b_stride, to, c_stride, depth, columns, next);
    }
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
