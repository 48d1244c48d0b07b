// Block-quantised weights times int8 activations.
//
// Weights are packed by 8 columns and blocks of 32 elements (see packing.py):
//   4 bits: 4 chunks of 32 bytes; byte 4c + i of chunk j holds column c, low nibble element 4j + i, high nibble 16 + 4j
//   + i 8 bits: 8 chunks of 32 bytes; byte 4c + i of chunk j holds column c, element 4j + i
// y = Σ_blocks scale · dx · Σ w·x + minimum · dx · Σ x, one chain in ascending order of blocks for every row.
#pragma once

#include "vector.h"
#if defined(__AMX_INT8__)
#include "tiles_amx.h"
#endif

namespace llmos {
namespace LLMOS_ISA {

inline void quantise_row(const float* x, int64_t k, const Activations& to) {
  for (int64_t b = 0; b < k / kBlock; ++b) {
    const float* block = x + b * kBlock;
    F top = absolute(load(block));
    for (int i = kLanes; i < kBlock; i += kLanes) top = maximum(top, absolute(load(block + i)));
    const float peak = largest(top);
    const float scale = peak / 127.0f;
    const int32_t sum = quantise_block(block, peak > 0 ? 127.0f / peak : 0.0f, to.codes + b * kBlock);
    to.scales[b * to.stride] = scale;
    to.sums[b * to.stride] = scale * float(sum);
  }
}

// With few rows the weights' way from memory is all that counts. 2 KiB ahead proved best among 1, 2 and 4; what lies
// beyond the end of the array is only hinted at, never read.
constexpr int kStreaming = 2, kAhead = 2048;

// Weights of kLanes columns: where their column groups begin, and how far these are apart.
struct Stripe {
  const uint8_t* codes;
  const Half* scales;
  int64_t code_stride, scale_stride;
};
constexpr int kGroups = kLanes / kColumns;

template <int kBits>
inline void prefetch_ahead(const Stripe& w) {
  constexpr int kBytes = kBits * kBlock, kHalves = (kBits == 4 ? 2 : 1) * kColumns;
  for (int g = 0; g < kGroups; ++g) {
    for (int i = 0; i < kBytes; i += kCacheLine) prefetch(w.codes + g * w.code_stride + kAhead + i);
    prefetch(w.scales + g * w.scale_stride + kAhead / kBytes * kHalves);
  }
}

template <int R>
inline void tile4(Stripe w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w.codes += 4 * kBlock, w.scales += 2 * kColumns) {
    Dot4 dots[R];
    if (R <= kStreaming) prefetch_ahead<4>(w);
    for (int j = 0; j < 4; ++j) {
      const Bytes both = load_groups(w.codes + j * kBlock, w.code_stride);
      const Bytes low = low_nibbles(both), high = high_nibbles(both);
      for (int r = 0; r < R; ++r) {
        const int8_t* codes = x.codes + r * k + b * kBlock + 4 * j;
        dots[r].add(low, broadcast_quad(codes));
        dots[r].add(high, broadcast_quad(codes + kBlock / 2));
      }
    }
    const F scale = load_groups(w.scales, w.scale_stride), minimum = load_groups(w.scales + kColumns, w.scale_stride);
    for (int r = 0; r < R; ++r) {
      sums[r] = fma(mul(scale, broadcast(x.scales[b * x.stride + r])), dots[r].value(), sums[r]);
      sums[r] = fma(minimum, broadcast(x.sums[b * x.stride + r]), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int R>
inline void tile8(Stripe w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w.codes += 8 * kBlock, w.scales += kColumns) {
    Dot8 dots[R];
    if (R <= kStreaming) prefetch_ahead<8>(w);
    for (int j = 0; j < 8; ++j) {
      const Bytes bytes = load_groups(w.codes + j * kBlock, w.code_stride);
      for (int r = 0; r < R; ++r) dots[r].add(bytes, broadcast_quad(x.codes + r * k + b * kBlock + 4 * j));
    }
    const F scale = load_groups(w.scales, w.scale_stride);
    for (int r = 0; r < R; ++r)
      sums[r] = fma(mul(scale, broadcast(x.scales[b * x.stride + r])), dots[r].value(), sums[r]);
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int kBits, int R>
inline void tile(const Stripe& w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  kBits == 4 ? tile4<R>(w, x, k, y, y_stride) : tile8<R>(w, x, k, y, y_stride);
}

// Calls tile<kBits, rows>, rows being 1 … R.
template <int kBits, int R>
inline void tile_of(int rows, const Stripe& w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  if constexpr (R > 1)
    if (rows < R) return tile_of<kBits, R - 1>(rows, w, x, k, y, y_stride);
  tile<kBits, R>(w, x, k, y, y_stride);
}

// Column groups [begin, end) of all rows. What is partly padding is computed aside and cut; so is a group without a
// neighbour where two are computed at once, and then in the neighbour's place again.
template <int kBits>
void quantised(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
               float* y) {
  constexpr int kRowBlock = 32;  // 32 rows of codes stay in the first-level cache
  const int64_t k = weights.k, blocks = k / kBlock;
  const int64_t code_stride = blocks * kColumns * kBlock * kBits / 8,
                scale_stride = blocks * kColumns * (kBits == 4 ? 2 : 1);
  for (int64_t from = 0; from < rows; from += kRowBlock) {
    const int64_t height = smaller<int64_t>(kRowBlock, rows - from), parts = (height + kDotRows - 1) / kDotRows;
    for (int64_t g = begin; g < end; g += kGroups) {
      const int64_t apart = g + 1 < end ? 1 : 0;
      const Stripe w{weights.codes + g * code_stride, weights.scales + g * scale_stride, apart * code_stride,
                     apart * scale_stride};
      const int width = int(smaller<int64_t>(kColumns * smaller<int64_t>(kGroups, end - g),  //
                                             weights.columns - g * kColumns));
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t r = from + height * i / parts;
        const int count = int(from + height * (i + 1) / parts - r);
        float aside[kDotRows * kLanes];
        float* target = y + r * weights.columns + g * kColumns;
        float* out = width == kLanes ? target : aside;
        tile_of<kBits, kDotRows>(count, w, x.from(r, k), k, out, width == kLanes ? weights.columns : kLanes);
        if (out == aside)
          for (int n = 0; n < count; ++n)
            std::memcpy(target + n * weights.columns, aside + n * kLanes, width * sizeof(float));
      }
    }
  }
}

#if defined(__AMX_INT8__)
// Whole tiles of 16 rows by AMX, and another one if most of it would be used.
template <int kBits>
void quantised_by_tiles(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
                        float* y) {
  constexpr int kWorthwhile = 9;
  const int64_t rest = rows % kTileRows, tiled = rows < kTileRows ? 0 : rest < kWorthwhile ? rows - rest : rows;
  if (tiled) quantised_tiles<kBits>(weights, x, tiled, begin, end, y);
  if (tiled < rows)
    quantised<kBits>(weights, x.from(tiled, weights.k), rows - tiled, begin, end, y + tiled * weights.columns);
}
#endif

}  // namespace LLMOS_ISA
}  // namespace llmos
