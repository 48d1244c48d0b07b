// Block-quantised weights times int8 activations.
//
// Weights are packed by 8 columns and blocks of 32 elements (see packing.py):
//   4 bits: 4 chunks of 32 bytes; byte 4c + i of chunk j holds column c, low nibble element 4j + i, high nibble 16 + 4j
//   + i 8 bits: 8 chunks of 32 bytes; byte 4c + i of chunk j holds column c, element 4j + i
// y = Σ_blocks scale · dx · Σ w·x + minimum · dx · Σ x, one chain in ascending order of blocks for every row.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

inline void quantise_row(const float* x, int64_t k, int8_t* codes, float* scales, float* sums) {
  for (int64_t b = 0; b < k / kBlock; ++b) {
    const float* block = x + b * kBlock;
    F8 top = absolute(load(block));
    for (int i = 8; i < kBlock; i += 8) top = maximum(top, absolute(load(block + i)));
    const float peak = largest(top);
    scales[b] = peak / 127.0f;
    sums[b] = scales[b] * float(quantise_block(block, peak > 0 ? 127.0f / peak : 0.0f, codes + b * kBlock));
  }
}

// With few rows the weights' way from memory is all that counts. 2 KiB ahead proved best among 1, 2 and 4; what lies
// beyond the end of the array is only hinted at, never read.
constexpr int kStreaming = 2, kAhead = 2048;

inline void prefetch_ahead(const uint8_t* w, int block_bytes, const Half* scales, int block_scales) {
  for (int i = 0; i < block_bytes; i += kCacheLine) prefetch(w + kAhead + i);
  prefetch(scales + kAhead / block_bytes * block_scales);
}

template <int R>
inline void tile4(const uint8_t* w, const Half* scales, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F8 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w += 4 * kBlock, scales += 2 * kColumns) {
    Dot4 dots[R];
    if (R <= kStreaming) prefetch_ahead(w, 4 * kBlock, scales, 2 * kColumns);
    for (int j = 0; j < 4; ++j) {
      const Bytes both = load_bytes(w + j * kBlock), low = low_nibbles(both), high = high_nibbles(both);
      for (int r = 0; r < R; ++r) {
        const int8_t* codes = x.codes + r * k + b * kBlock + 4 * j;
        dots[r].add(low, broadcast_quad(codes));
        dots[r].add(high, broadcast_quad(codes + kBlock / 2));
      }
    }
    const F8 scale = load(scales), minimum = load(scales + kColumns);
    for (int r = 0; r < R; ++r) {
      sums[r] = fma(mul(scale, broadcast(x.scales[r * blocks + b])), dots[r].value(), sums[r]);
      sums[r] = fma(minimum, broadcast(x.sums[r * blocks + b]), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int R>
inline void tile8(const uint8_t* w, const Half* scales, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F8 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w += 8 * kBlock, scales += kColumns) {
    Dot8 dots[R];
    if (R <= kStreaming) prefetch_ahead(w, 8 * kBlock, scales, kColumns);
    for (int j = 0; j < 8; ++j) {
      const Bytes bytes = load_bytes(w + j * kBlock);
      for (int r = 0; r < R; ++r) dots[r].add(bytes, broadcast_quad(x.codes + r * k + b * kBlock + 4 * j));
    }
    const F8 scale = load(scales);
    for (int r = 0; r < R; ++r)
      sums[r] = fma(mul(scale, broadcast(x.scales[r * blocks + b])), dots[r].value(), sums[r]);
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int kBits, int R>
inline void tile(const uint8_t* w, const Half* scales, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  kBits == 4 ? tile4<R>(w, scales, x, k, y, y_stride) : tile8<R>(w, scales, x, k, y, y_stride);
}

// Column groups [begin, end) of all rows. The last group may be partly padding: it is computed aside and cut.
template <int kBits>
void quantised(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
               float* y) {
  constexpr int kRows = 4, kRowBlock = 32;  // 32 rows of codes stay in the first-level cache
  const int64_t k = weights.k, blocks = k / kBlock;
  const int64_t code_stride = blocks * kColumns * kBlock * kBits / 8,
                scale_stride = blocks * kColumns * (kBits == 4 ? 2 : 1);
  for (int64_t from = 0; from < rows; from += kRowBlock) {
    const int64_t to = smaller<int64_t>(rows, from + kRowBlock);
    for (int64_t g = begin; g < end; ++g) {
      const uint8_t* w = weights.codes + g * code_stride;
      const Half* scales = weights.scales + g * scale_stride;
      const int width = int(smaller<int64_t>(kColumns, weights.columns - g * kColumns));
      for (int64_t r = from; r < to; r += kRows) {
        const Activations part{x.codes + r * k, x.scales + r * blocks, x.sums + r * blocks};
        float aside[kRows * kColumns];
        float* target = y + r * weights.columns + g * kColumns;
        float* out = width == kColumns ? target : aside;
        const int64_t stride = width == kColumns ? weights.columns : kColumns;
        const int count = int(smaller<int64_t>(kRows, to - r));
        switch (count) {
          case 1: tile<kBits, 1>(w, scales, part, k, out, stride); break;
          case 2: tile<kBits, 2>(w, scales, part, k, out, stride); break;
          case 3: tile<kBits, 3>(w, scales, part, k, out, stride); break;
          default: tile<kBits, 4>(w, scales, part, k, out, stride);
        }
        if (out == aside)
          for (int i = 0; i < count; ++i)
            std::memcpy(target + i * weights.columns, aside + i * kColumns, width * sizeof(float));
      }
    }
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
