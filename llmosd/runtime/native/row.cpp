// What sampling asks of one row of logits. Not operators: plain C functions, called on the sampling thread.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "export.h"
#include "kernels/kernels.h"

namespace llmos {
namespace {

// Rises as the value falls, and with the id where values are equal.
uint64_t key(float value, int64_t id) {
  value += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~rising) << 32 | uint64_t(id);
}

// By radix where there are many: three stable passes over the value's 32 bits; the ids rise already.
void sort(std::vector<uint64_t>& keys) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  if (keys.size() < kBuckets) return std::sort(keys.begin(), keys.end());
  std::vector<uint64_t> sorted(keys.size());
  for (int shift = 32; shift < 64; shift += kBits) {
    size_t places[kBuckets + 1] = {};
    for (uint64_t k : keys) ++places[(k >> shift) % kBuckets + 1];
    for (int b = 0; b < kBuckets; ++b) places[b + 1] += places[b];
    for (uint64_t k : keys) sorted[places[(k >> shift) % kBuckets]++] = k;
    keys.swap(sorted);
  }
}

int64_t above(const float* row, int64_t length, const float* maxima, float least, int64_t* ids) {
  std::vector<uint64_t> found;
  for (int64_t block = 0; block * kRowBlock < length; ++block) {
    if (maxima[block] < least) continue;
    const int64_t end = std::min(length, (block + 1) * kRowBlock);
    for (int64_t i = block * kRowBlock; i < end; ++i)
      if (row[i] >= least) found.push_back(key(row[i], i));
  }
  sort(found);
  for (size_t i = 0; i < found.size(); ++i) ids[i] = int64_t(found[i] & UINT32_MAX);
  return int64_t(found.size());
}

}  // namespace
}  // namespace llmos

// For each block of 64: its largest logit, and Σ exp((logit - the row's largest) · scale), NaN where a logit is.
LLMOS_EXPORT void llmos_weigh(const float* row, int64_t length, float scale, float* maxima, double* sums) {
  llmos::kernels().weigh(row, length, scale, maxima, sums);
}

// Ids of the logits that reach `least`, falling, ties by id, and how many; -1 if there is no memory for them.
LLMOS_EXPORT int64_t llmos_above(const float* row, int64_t length, const float* maxima, float least, int64_t* ids) {
  try {
    return llmos::above(row, length, maxima, least, ids);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}
