// Block-quantised weights times float32 activations on AMX's bfloat16 tiles, for many rows: weights become bfloat16 once
// for all of them, and nothing is left to do between blocks.
//
// Both sides are rounded to 8 bits of mantissa; sums are float32, one chain in ascending order of blocks for every row.
// These are other bits than those of quantised.h.
#pragma once

#include "tile_pairs.h"

namespace llmos {
namespace LLMOS_ISA {

constexpr int kRoundedDepth = 12;  // blocks whose weights lie unpacked: activations pass by in the same first-level cache

// One block of a column group, packed as packed.h describes it.
template <int kBits>
inline void round_block(const uint8_t* codes, const Half* scales, PairTile& to) {
  constexpr int kChunk = Packed<kBits>::kChunk;
  const F scale = load(scales);
  if constexpr (kBits == 4) {
    const F minimum = load(scales + kColumns);
    const F values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int j = 0; j < 4; ++j) {
      const Bytes bytes = load_bytes(codes + j * kChunk);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // a look-up counts the lowest 4 bits of its index only
        const F low = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 8 * i), values);
        const F high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 8 * i + 4), values);
        _mm512_store_si512(to[4 * j + i], pairs(fma(scale, low, minimum), fma(scale, high, minimum)));
      }
    }
  } else {
    for (int j = 0; j < 4; ++j) {
      const Bytes low = load_bytes(codes + j * kChunk);
      const Bytes high = load_bytes(codes + (j + 4) * kChunk);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const auto value = [&](Bytes bytes) {
          return mul(scale, _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * i), 24)));
        };
        _mm512_store_si512(to[4 * j + i], pairs(value(low), value(high)));
      }
    }
  }
}

// As many of 32 rows and 32 columns as exist, over blocks [from, from + count) of `depth`.
inline void multiply_part(const uint32_t* x, int64_t depth, const PairTile (*weights)[2], int64_t from, int count,
                          float* y, int64_t y_stride, int rows, int columns) {
  const bool tall = rows > kSide, wide = columns > kSide;
  alignas(kCacheLine) float aside[2 * kSide][2 * kSide];
  const bool whole = rows % kSide == 0 && columns % kSide == 0;
  float* const to = whole ? y : aside[0];
  const int64_t stride = whole ? y_stride : 2 * kSide;
  if (!whole && from)
    for (int r = 0; r < rows; ++r) std::memcpy(aside[r], y + r * y_stride, columns * sizeof(float));
  const auto call = [&](auto run) { run(x + from * kTileElements, depth, weights, count, to, stride); };
  if (from)
    tall ? wide ? call(multiply_pairs<2, 2, true>) : call(multiply_pairs<2, 1, true>)
         : wide ? call(multiply_pairs<1, 2, true>) : call(multiply_pairs<1, 1, true>);
  else
    tall ? wide ? call(multiply_pairs<2, 2, false>) : call(multiply_pairs<2, 1, false>)
         : wide ? call(multiply_pairs<1, 2, false>) : call(multiply_pairs<1, 1, false>);
  if (!whole)
    for (int r = 0; r < rows; ++r) std::memcpy(y + r * y_stride, aside[r], columns * sizeof(float));
}

// Column groups [begin, end) of all rows; `x` holds whole tiles, whatever is in the rows beyond the last.
template <int kBits>
void rounded(const QuantisedWeights& weights, const uint32_t* x, int64_t rows, int64_t begin, int64_t end,
             const Output& y) {
  using P = Packed<kBits>;
  const int64_t blocks = weights.k / kBlock, parts = (blocks + kRoundedDepth - 1) / kRoundedDepth;
  alignas(kCacheLine) PairTile unpacked[kRoundedDepth][2];
  const Tiles tiles(kPairShapes);
  for (int64_t g = begin; g < end; g += kStripeGroups) {
    const int64_t groups = smaller<int64_t>(kStripeGroups, end - g);
    const int columns = int(smaller<int64_t>(groups * kColumns, weights.columns - g * kColumns));
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = blocks * i / parts;
      const int count = int(blocks * (i + 1) / parts - from);
      for (int64_t n = 0; n < groups; ++n) {
        const int64_t here = (g + n) * blocks + from, after = i + 1 < parts ? here + count : (g + n + kStripeGroups) * blocks;
        const WeightLanes now{weights.codes + here * P::kCodes, weights.scales + here * P::kScales};
        const WeightLanes next{weights.codes + after * P::kCodes, weights.scales + after * P::kScales};
        for (int b = 0; b < count; ++b) {
          round_block<kBits>(now.codes + b * P::kCodes, now.scales + b * P::kScales, unpacked[b][n]);
          prefetch_block<kBits>(next, b);
        }
      }
      for (int64_t r = 0; r < rows; r += 2 * kSide)
        multiply_part(x + r / kSide * blocks * kTileElements, blocks, unpacked, from, count,
                      y.of(r, g - begin), y.row_stride,
                      int(smaller<int64_t>(2 * kSide, rows - r)), columns);
    }
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
