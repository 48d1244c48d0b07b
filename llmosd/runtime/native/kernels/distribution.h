// One row of logits by blocks of kRowBlock: the largest of each, and its share of the softmax's denominator.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

struct Survey {
  float top;     // the largest so far; of no meaning once `finite` is NaN
  float finite;  // 0, or NaN if a logit is infinite or NaN: 0 · x is
};

constexpr int kRowAhead = 1024;  // logits to fetch ahead of use: other cores have just written them

inline Survey survey_block(const float* x, int count) {
  prefetch(x + kRowAhead, kRowBlock);
  if (count == kRowBlock) {
    F lanes = load(x), finite = mul(lanes, zero());
    for (int i = kLanes; i < kRowBlock; i += kLanes) {
      const F values = load(x + i);
      lanes = maximum(lanes, values);
      finite = fma(values, zero(), finite);
    }
    return {largest(lanes), sum(finite)};
  }
  Survey found{x[0], 0};
  for (int i = 0; i < count; ++i) found = {larger(found.top, x[i]), found.finite + x[i] * 0.0f};
  return found;
}

inline bool holds_nan(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (x[i] != x[i]) return true;
  return false;
}

// The largest logit of each block; returns the row's, or NaN if a logit is.
inline float survey(const float* row, int64_t length, float* maxima) {
  Survey all{row[0], 0};
  for (int64_t at = 0; at < length; at += kRowBlock) {
    const Survey found = survey_block(row + at, int(smaller<int64_t>(kRowBlock, length - at)));
    maxima[at / kRowBlock] = found.top;
    all = {larger(all.top, found.top), all.finite + found.finite};
  }
  return all.finite != all.finite && holds_nan(row, length) ? all.finite : all.top;
}

// Σ exp((x - top) · scale)
inline float weight_of(const float* x, int count, float top, float scale) {
  if (count == kRowBlock) {
    const F shift = broadcast(top), factor = broadcast(scale);
    F total = zero();
    for (int i = 0; i < kRowBlock; i += kLanes) total = add(total, exponential(mul(sub(load(x + i), shift), factor)));
    return sum(total);
  }
  float total = 0;
  for (int i = 0; i < count; ++i) total += exponential((x[i] - top) * scale);
  return total;
}

// For each block Σ exp((logit - top) · scale), `top` being the row's largest.
inline void weigh(const float* row, int64_t length, float top, float scale, double* sums) {
  for (int64_t at = 0; at < length; at += kRowBlock)
    sums[at / kRowBlock] = weight_of(row + at, int(smaller<int64_t>(kRowBlock, length - at)), top, scale);
}

}  // namespace LLMOS_ISA
}  // namespace llmos
