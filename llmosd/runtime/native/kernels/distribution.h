// One row of logits by blocks of kRowBlock: the largest of each, and its share of the softmax's denominator.
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

inline float largest_of(const float* x, int count) {
  float top = x[0];
  if (count == kRowBlock) {
    F8 lanes = load(x);
    for (int i = 8; i < kRowBlock; i += 8) lanes = maximum(lanes, load(x + i));
    return largest(lanes);
  }
  for (int i = 1; i < count; ++i) top = larger(top, x[i]);
  return top;
}

// Σ exp((x - top) · scale); NaN if an x is.
inline float weight_of(const float* x, int count, float top, float scale) {
  if (count == kRowBlock) {
    const F8 shift = broadcast(top), factor = broadcast(scale);
    F8 total = zero();
    for (int i = 0; i < kRowBlock; i += 8) total = add(total, exponential(mul(sub(load(x + i), shift), factor)));
    return sum(total);
  }
  float total = 0;
  for (int i = 0; i < count; ++i) total += exponential((x[i] - top) * scale);
  return total;
}

inline void weigh(const float* row, int64_t length, float scale, float* maxima, double* sums) {
  float top = row[0];
  for (int64_t at = 0; at < length; at += kRowBlock) {
    const float found = largest_of(row + at, int(smaller<int64_t>(kRowBlock, length - at)));
    top = larger(top, found);
    maxima[at / kRowBlock] = found;
  }
  for (int64_t at = 0; at < length; at += kRowBlock)
    sums[at / kRowBlock] = weight_of(row + at, int(smaller<int64_t>(kRowBlock, length - at)), top, scale);
}

}  // namespace LLMOS_ISA
}  // namespace llmos
