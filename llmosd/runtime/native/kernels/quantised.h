// Block-quantised weights (packed.h) times int8 activations.
//
// y = Σ_blocks scale · dx · Σ w·x + minimum · dx · Σ x, one chain in ascending order of blocks for every row.
#pragma once

#include "packed.h"
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

template <int R>
inline void tile4(WeightLanes w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w.codes += Packed<4>::kCodes, w.scales += Packed<4>::kScales) {
    Dot4 dots[R];
    prefetch_block<4>(w, kAhead / Packed<4>::kCodes);
    for (int j = 0; j < 4; ++j) {
      const Bytes both = load_bytes(w.codes + j * Packed<4>::kChunk);
      const Bytes low = low_nibbles(both), high = high_nibbles(both);
      for (int r = 0; r < R; ++r) {
        const int8_t* codes = x.codes + r * k + b * kBlock + 4 * j;
        dots[r].add(low, broadcast_quad(codes));
        dots[r].add(high, broadcast_quad(codes + kBlock / 2));
      }
    }
    const F scale = load(w.scales), minimum = load(w.scales + kColumns);
    for (int r = 0; r < R; ++r) {
      sums[r] = fma(mul(scale, broadcast(x.scales[b * x.stride + r])), dots[r].value(), sums[r]);
      sums[r] = fma(minimum, broadcast(x.sums[b * x.stride + r]), sums[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int R>
inline void tile8(WeightLanes w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  const int64_t blocks = k / kBlock;
  F sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, w.codes += Packed<8>::kCodes, w.scales += Packed<8>::kScales) {
    Dot8 dots[R];
    prefetch_block<8>(w, kAhead / Packed<8>::kCodes);
    for (int j = 0; j < 8; ++j) {
      const Bytes bytes = load_bytes(w.codes + j * Packed<8>::kChunk);
      for (int r = 0; r < R; ++r) dots[r].add(bytes, broadcast_quad(x.codes + r * k + b * kBlock + 4 * j));
    }
    const F scale = load(w.scales);
    for (int r = 0; r < R; ++r)
      sums[r] = fma(mul(scale, broadcast(x.scales[b * x.stride + r])), dots[r].value(), sums[r]);
  }
  for (int r = 0; r < R; ++r) store(y + r * y_stride, sums[r]);
}

template <int kBits, int R>
inline void tile(const WeightLanes& w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  kBits == 4 ? tile4<R>(w, x, k, y, y_stride) : tile8<R>(w, x, k, y, y_stride);
}

// Calls tile<kBits, rows>, rows being 1 … R.
template <int kBits, int R>
inline void tile_of(int rows, const WeightLanes& w, const Activations& x, int64_t k, float* y, int64_t y_stride) {
  if constexpr (R > 1)
    if (rows < R) return tile_of<kBits, R - 1>(rows, w, x, k, y, y_stride);
  tile<kBits, R>(w, x, k, y, y_stride);
}

// Column groups [begin, end) of all rows. What is partly padding is computed aside and cut.
template <int kBits>
void quantised(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
               const Output& y) {
  constexpr int kRowBlock = 32;  // 32 rows of codes stay in the first-level cache
  using P = Packed<kBits>;
  const int64_t k = weights.k, blocks = k / kBlock;
  for (int64_t from = 0; from < rows; from += kRowBlock) {
    const int64_t height = smaller<int64_t>(kRowBlock, rows - from), parts = (height + kDotRows - 1) / kDotRows;
    for (int64_t half = begin * kHalves; half < end * kHalves; ++half) {
      const int64_t g = half / kHalves, lane = half % kHalves * kLanes;
      const WeightLanes w{weights.codes + g * blocks * P::kCodes + 4 * lane, weights.scales + g * blocks * P::kScales + lane,
                          lane == 0};
      const int width = int(smaller<int64_t>(kLanes, weights.columns - g * kColumns - lane));
      if (width <= 0) continue;
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t r = from + height * i / parts;
        const int count = int(from + height * (i + 1) / parts - r);
        float aside[kDotRows * kLanes];
        float* target = y.of(r, g - begin) + lane;
        float* out = width == kLanes ? target : aside;
        tile_of<kBits, kDotRows>(count, w, x.from(r, k), k, out, width == kLanes ? y.row_stride : kLanes);
        if (out == aside)
          for (int n = 0; n < count; ++n)
            std::memcpy(target + n * y.row_stride, aside + n * kLanes, width * sizeof(float));
      }
    }
  }
}

#if defined(__AMX_INT8__)
// Whole tiles of 16 rows by AMX, and another one if most of it would be used.
template <int kBits>
void quantised_by_tiles(const QuantisedWeights& weights, const Activations& x, int64_t rows, int64_t begin, int64_t end,
                        const Output& y) {
  constexpr int kWorthwhile = 9;
  const int64_t rest = rows % kTileRows, tiled = rows < kTileRows ? 0 : rest < kWorthwhile ? rows - rest : rows;
  if (tiled) quantised_tiles<kBits>(weights, x, tiled, begin, end, y);
  if (tiled < rows)
    quantised<kBits>(weights, x.from(tiled, weights.k), rows - tiled, begin, end,
                     {y.of(tiled, 0), y.row_stride, y.stripe_stride});
}
#endif

}  // namespace LLMOS_ISA
}  // namespace llmos
