// The table of kernels for one instruction set; the build compiles this file once for each, with LLMOS_ISA set.
#include "attention.h"
#include "distribution.h"
#include "quantised.h"
#if defined(__AMX_BF16__)
#include "attention_bf16.h"
#include "tiles_bf16.h"
#endif

#include <cmath>

#define LLMOS_NAME_(isa) #isa
#define LLMOS_NAME(isa) LLMOS_NAME_(isa)

namespace llmos {
namespace LLMOS_ISA {
namespace {

// Float32 weights packed by 16 columns: panel p holds [k, 16] of columns 16p … 16p + 15.
void linear32(const float* weight, const float* x, int rows, int64_t columns, int64_t k, int64_t begin, int64_t end,
              float* y) {
  for (int64_t p = begin; p < end; ++p) {
    const float* panel = weight + p * kPanel * k;
    float* target = y + p * kPanel;
    const int width = int(smaller<int64_t>(kPanel, columns - p * kPanel));
    if (width == kPanel) {
      gemm<false, float>(rows, {x, k}, panel, kPanel, target, columns, int(k), kPanel, {});
      continue;
    }
    float aside[kMaxLinearRows * kPanel];
    gemm<false, float>(rows, {x, k}, panel, kPanel, aside, kPanel, int(k), kPanel, {});
    for (int i = 0; i < rows; ++i) std::memcpy(target + i * columns, aside + i * kPanel, width * sizeof(float));
  }
}

inline F silu_times(F gate, F up) {
  const F negative = sub(zero(), maximum(broadcast(-87.0f), gate));  // exp(87) is still finite
  return div(mul(gate, up), add(broadcast(1.0f), exponential(negative)));
}

// out = gate · sigmoid(gate) · up
void swiglu(const float* gate, const float* up, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, silu_times(load(gate + i), load(up + i)));
  for (; i < count; ++i) {
    float lanes[kLanes];
    store(lanes, silu_times(broadcast(gate[i]), broadcast(up[i])));
    out[i] = lanes[0];
  }
}

// One stripe of products becomes what y is to hold of it. Rows of y and of what is added lie far apart, each at its own
// place in memory.
void finish(const float* x, int64_t rows, int columns, bool gated, const float* residual, float* y, int64_t y_stride) {
  constexpr int kWidth = kStripeGroups * kColumns, kAheadRows = 8;
  const int width = gated ? columns / 2 : columns;
  for (int64_t r = 0; r < rows; ++r, x += kWidth, y += y_stride) {
    const float* const old = residual ? residual + r * y_stride : nullptr;
    prefetch(y + kAheadRows * y_stride, width);
    if (old) prefetch(old + kAheadRows * y_stride, width);
    int i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      const F value = gated ? silu_times(load(x + i), load(x + kGated + i)) : load(x + i);
      store(y + i, old ? add(value, load(old + i)) : value);
    }
    for (; i < width; ++i) y[i] = old ? x[i] + old[i] : x[i];
  }
}

void normalise_row(const float* x, const float* gain, float epsilon, int64_t k, float* out) {
  F squares[2] = {zero(), zero()};
  for (int64_t i = 0; i < k; i += 2 * kLanes)
    for (int j = 0; j < 2; ++j) squares[j] = fma(load(x + i + j * kLanes), load(x + i + j * kLanes), squares[j]);
  const F scale = broadcast(1.0f / std::sqrt(sum(add(squares[0], squares[1])) / float(k) + epsilon));
  for (int64_t i = 0; i < k; i += kLanes) store(out + i, mul(mul(load(x + i), scale), load(gain + i)));
}

}  // namespace

#if defined(__AMX_INT8__)
constexpr auto linear4 = quantised_by_tiles<4>, linear8 = quantised_by_tiles<8>;
constexpr auto rounded4 = rounded<4>, rounded8 = rounded<8>;
#else
constexpr auto linear4 = quantised<4>, linear8 = quantised<8>;
constexpr decltype(Kernels::attend_rounded) attend_rounded = nullptr;
constexpr decltype(Kernels::round_row) round_activations = nullptr;
constexpr decltype(Kernels::rounded4) rounded4 = nullptr, rounded8 = nullptr;
#endif

extern const Kernels table;
const Kernels table = {LLMOS_NAME(LLMOS_ISA), store_tokens, rotate_queries, fetch_first_keys, attend, attend_rounded, merge,
                       quantise_row, linear4, linear8, round_activations, rounded4, rounded8, linear32, swiglu, finish,
                       normalise_row, survey, weigh};

}  // namespace LLMOS_ISA
}  // namespace llmos
