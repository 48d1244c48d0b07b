// Block-quantised weights times int8 activations on AMX's tiles: 16 rows × 16 columns × one block of 32 elements at once.
//
// A block's dot products are exact integers, and what follows them is the chain of quantised.h in the same order: a row's
// bits are those of the vector kernels. Instructions are written out as assembly because compilers of 2022 forget which
// memory theirs read.
#pragma once

#include "packed.h"
#include "tile_registers.h"

namespace llmos {
namespace LLMOS_ISA {

constexpr int kTileDepth = 48;                    // blocks whose weights lie unpacked in the first-level cache

// Registers 0 and 1 hold products, 2 activations, 3 weights.
constexpr TileShapes kProductShapes{
    1, 0, {}, {4 * kColumns, 4 * kColumns, kBlock, 4 * kColumns}, {kTileRows, kTileRows, kTileRows, kBlock / 4}};

// Weights of 16 columns and one block. Row r of the codes has elements 4r … 4r + 3 of each column.
struct alignas(kCacheLine) TileWeights {
  uint8_t codes[kBlock / 4][4 * kColumns];
  float scales[kColumns], minima[kColumns];
};

using Products = int32_t[kTileRows][kColumns];

// One block of a column group, packed as packed.h describes it.
template <int kBits>
inline void unpack(const uint8_t* codes, const Half* scales, TileWeights& to) {
  for (int j = 0; j < kBits; ++j) {
    const Bytes bytes = load_bytes(codes + j * Packed<kBits>::kChunk);
    if constexpr (kBits == 8) {
      _mm512_store_si512(to.codes[j], bytes);
    } else {
      _mm512_store_si512(to.codes[j], low_nibbles(bytes));
      _mm512_store_si512(to.codes[4 + j], high_nibbles(bytes));
    }
  }
  store(to.scales, load(scales));
  if constexpr (kBits == 4) store(to.minima, load(scales + kColumns));
}

// Dot products of a block's codes [16 rows, stride k] with its weights.
template <int kBits>
inline void multiply(const int8_t* x, int64_t k, const TileWeights& weights, Products& products) {
  const int64_t weight_stride = sizeof weights.codes[0], product_stride = sizeof products[0];
  asm volatile("tilezero %%tmm0\n\ttileloadd (%0,%1,1), %%tmm2\n\ttileloadd (%2,%3,1), %%tmm3"
               :
               : "r"(x), "r"(k), "r"(weights.codes), "r"(weight_stride)
               : "memory");
  if constexpr (kBits == 4)
    asm volatile("tdpbsud %tmm3, %tmm2, %tmm0");
  else
    asm volatile("tdpbssd %tmm3, %tmm2, %tmm0");
  asm volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(products), "r"(product_stride) : "memory");
}

// 16 rows of y, of which the columns in `mask` exist and rows before `first` belong to others, over blocks
// [from, from + count); `x` begins at the first of them.
template <int kBits>
inline void tile_row(const TileWeights* weights, int64_t from, int count, const Activations& x, int64_t k, float* y,
                      int64_t y_stride, __mmask16 mask, int first, WeightLanes next) {
  alignas(kCacheLine) Products products[2];
  __m512 sums[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
    sums[r] = from ? _mm512_maskz_loadu_ps(mask, y + r * y_stride) : _mm512_setzero_ps();
  multiply<kBits>(x.codes, k, weights[0], products[0]);
  for (int b = 0; b < count; ++b) {
    if (b + 1 < count) multiply<kBits>(x.codes + (b + 1) * kBlock, k, weights[b + 1], products[(b + 1) % 2]);
    prefetch_block<kBits>(next, b);
    const float *scales = x.scales + b * x.stride, *sumx = x.sums + b * x.stride;
    const __m512 scale = _mm512_load_ps(weights[b].scales), minimum = _mm512_load_ps(weights[b].minima);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 dots = _mm512_cvtepi32_ps(_mm512_load_si512(products[b % 2][r]));
      sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(scales[r])), dots, sums[r]);
      if constexpr (kBits == 4) sums[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(sumx[r]), sums[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
    if (r >= first) _mm512_mask_storeu_ps(y + r * y_stride, mask, sums[r]);
}

// Column groups [begin, end) of `rows` rows, of which there are at least 16. The last tile of rows reaches back over some
// of the one before it, and leaves those alone.
template <int kBits>
void quantised_tiles(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
                     const Output& y) {
  const int64_t k = weights.k, blocks = k / kBlock;
  using P = Packed<kBits>;
  TileWeights unpacked[kTileDepth];
  const Tiles tiles(kProductShapes);
  for (int64_t g = begin; g < end; ++g) {
    const int64_t width = weights.columns - g * kColumns;
    const __mmask16 mask = width >= kColumns ? 0xffff : (1 << width) - 1;
    for (int64_t from = 0; from < blocks; from += kTileDepth) {
      const int count = int(smaller<int64_t>(kTileDepth, blocks - from));
      for (int b = 0; b < count; ++b) {
        const int64_t at = g * blocks + from + b;
        const WeightLanes w{weights.codes + at * P::kCodes, weights.scales + at * P::kScales};
        unpack<kBits>(w.codes, w.scales, unpacked[b]);
      }
      for (int64_t done = 0; done < rows; done += kTileRows) {
        const int64_t r = smaller(done, rows - kTileRows), line = from * x.stride + r;
        const Activations part{x.codes + r * k + from * kBlock, x.scales + line, x.sums + line, x.stride};
        const int64_t after = done ? 0 : g * blocks + from + count;  // its way from memory is as long as this takes
        const WeightLanes next{weights.codes + after * P::kCodes, weights.scales + after * P::kScales, done == 0};
        tile_row<kBits>(unpacked, from, count, part, k, y.of(r, g - begin), y.row_stride, mask, int(done - r), next);
      }
    }
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
