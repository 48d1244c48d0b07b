// Products on AMX's bfloat16 tiles: both sides are rounded to 8 bits of mantissa and lie in pairs of elements; sums are
// float32.
#pragma once

#include "tile_registers.h"

namespace llmos {
namespace LLMOS_ISA {

constexpr int kSide = kTileRows;  // rows, columns and pairs of a tile
constexpr int64_t kTileElements = kSide * kSide;

// 16 × 16 pairs of elements of a block: of the left matrix by row, of the right one by column. Any two will do, if both
// matrices have the same.
using PairTile = uint32_t[kSide][kSide];

inline __m512i pairs(F low, F high) {  // elements i of both; to nearest, ties away from zero
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(int(0xffff0000));
  const __m512i a = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low), half), 16);
  const __m512i b = _mm512_add_epi32(_mm512_castps_si512(high), half);
  constexpr int kSelectOr = 0xf8;  // a | (b & upper)
  return _mm512_ternarylogic_epi32(a, b, upper, kSelectOr);
}

// A row of the left matrix into its place in tiles [rows / 16, k / 32]; what the right one has as pairs, `pair` makes of
// the halves of a block.
template <class Pair>
inline void round_row(const float* x, int64_t k, int64_t row, uint32_t* tiles, Pair pair) {
  uint32_t* to = tiles + row / kSide * (k / kBlock) * kTileElements + row % kSide * kSide;
  for (int64_t b = 0; b < k / kBlock; ++b, x += kBlock, to += kTileElements)
    _mm512_storeu_si512(to, pair(load(x), load(x + kSide)));
}

// Registers 0 to 3 hold sums, 4 and 5 the left matrix, 6 and 7 the right one.
constexpr TileShapes kPairShapes{1,
                                 0,
                                 {},
                                 {64, 64, 64, 64, 64, 64, 64, 64},
                                 {kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide}};

#define LLMOS_TILE_LOAD(tile, at, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"(int64_t(stride)) : "memory")
#define LLMOS_TILE_STORE(tile, at, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"(int64_t(stride)) : "memory")
#define LLMOS_TILE_MULTIPLY(sums, a, b) asm volatile("tdpbf16ps %tmm" #b ", %tmm" #a ", %tmm" #sums)

// y[16·kHeight rows × 16·kWidth columns] = or += the product over `count` blocks; `depth` is x's blocks in a row.
template <int kHeight, int kWidth, bool kAccumulate>
inline void multiply_pairs(const uint32_t* x, int64_t depth, const PairTile (*right)[2], int count, float* y,
                           int64_t y_stride) {
  const int64_t line = y_stride * int64_t(sizeof(float));
  float* const below = y + kSide * y_stride;
  const uint32_t* const x_below = x + depth * kTileElements;
  if constexpr (kAccumulate) {
    LLMOS_TILE_LOAD(0, y, line);
    if constexpr (kWidth == 2) LLMOS_TILE_LOAD(1, y + kSide, line);
    if constexpr (kHeight == 2) LLMOS_TILE_LOAD(2, below, line);
    if constexpr (kHeight == 2 && kWidth == 2) LLMOS_TILE_LOAD(3, below + kSide, line);
  } else {
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
  }
  for (int b = 0; b < count; ++b) {
    LLMOS_TILE_LOAD(4, x + b * kTileElements, kCacheLine);
    LLMOS_TILE_LOAD(6, right[b][0], kCacheLine);
    LLMOS_TILE_MULTIPLY(0, 4, 6);
    if constexpr (kWidth == 2) {
      LLMOS_TILE_LOAD(7, right[b][1], kCacheLine);
      LLMOS_TILE_MULTIPLY(1, 4, 7);
    }
    if constexpr (kHeight == 2) {
      LLMOS_TILE_LOAD(5, x_below + b * kTileElements, kCacheLine);
      LLMOS_TILE_MULTIPLY(2, 5, 6);
      if constexpr (kWidth == 2) LLMOS_TILE_MULTIPLY(3, 5, 7);
    }
  }
  LLMOS_TILE_STORE(0, y, line);
  if constexpr (kWidth == 2) LLMOS_TILE_STORE(1, y + kSide, line);
  if constexpr (kHeight == 2) LLMOS_TILE_STORE(2, below, line);
  if constexpr (kHeight == 2 && kWidth == 2) LLMOS_TILE_STORE(3, below + kSide, line);
}

#undef LLMOS_TILE_LOAD
#undef LLMOS_TILE_STORE
#undef LLMOS_TILE_MULTIPLY

}  // namespace LLMOS_ISA
}  // namespace llmos
