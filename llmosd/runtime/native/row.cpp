// What sampling asks of one row of logits. Not operators: plain C functions, called on the sampling thread.
#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#include "export.h"
#include "kernels/kernels.h"

namespace llmos {
namespace {

// A value that at least `count` elements reach. With few of them asked for, the count-th largest of the blocks' maxima,
// which is close to the count-th largest value.
float edge(const float* row, int64_t length, const float* maxima, int64_t count) {
  const int64_t blocks = (length + kRowBlock - 1) / kRowBlock;
  std::vector<float> heads = count <= blocks ? std::vector<float>(maxima, maxima + blocks)
                                             : std::vector<float>(row, row + length);
  std::nth_element(heads.begin(), heads.begin() + (count - 1), heads.end(), std::greater<float>());
  return heads[count - 1];
}

// Rises as the value falls, and with the id where values are equal.
uint64_t key(float value, int64_t id) {
  value += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~rising) << 32 | uint64_t(id);
}

void top(const float* row, int64_t length, const float* maxima, int64_t count, int64_t* ids) {
  const float least = edge(row, length, maxima, count);
  std::vector<uint64_t> found;
  for (int64_t block = 0; block * kRowBlock < length; ++block) {
    if (maxima[block] < least) continue;
    const int64_t end = std::min(length, (block + 1) * kRowBlock);
    for (int64_t i = block * kRowBlock; i < end; ++i)
      if (row[i] >= least) found.push_back(key(row[i], i));
  }
  std::nth_element(found.begin(), found.begin() + (count - 1), found.end());
  std::sort(found.begin(), found.begin() + count);
  for (int64_t i = 0; i < count; ++i) ids[i] = int64_t(found[i] & UINT32_MAX);
}

}  // namespace
}  // namespace llmos

// For each block of 64: its largest logit, and Σ exp((logit - the row's largest) · scale), NaN where a logit is.
LLMOS_EXPORT void llmos_weigh(const float* row, int64_t length, float scale, float* maxima, double* sums) {
  llmos::kernels().weigh(row, length, scale, maxima, sums);
}

// The `count` <= length largest of a row without NaN, in falling order, ties by id. 0 if there is no memory for it.
LLMOS_EXPORT int llmos_top(const float* row, int64_t length, const float* maxima, int64_t count, int64_t* ids) {
  try {
    if (count > 0) llmos::top(row, length, maxima, count, ids);
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}
