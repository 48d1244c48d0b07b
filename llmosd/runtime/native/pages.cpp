// Pages to and from one buffer, and a checksum of it: what the swap file needs of the processor.
//
// A page lies in many arrays, the K and the V of each layer, as the same number of bytes at the same place of each.
#include <cstdint>
#include <cstring>

#include "export.h"

namespace {

// XXH64 with seed 0 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                   kPrime4 = 0x85EBCA77C2B2AE63;

uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

uint64_t round_of(uint64_t lane, uint64_t word) { return rotate(lane + word * kPrime2, 31) * kPrime1; }

uint64_t word_at(const char* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

}  // namespace

// Byte `page` · `bytes` and on of each of the `count` arrays, one after the other, to `out`.
LLMOS_EXPORT void llmos_gather_page(const char* const* arrays, int64_t count, int64_t bytes, int64_t page, char* out) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * bytes, arrays[i] + page * bytes, size_t(bytes));
}

// The reverse.
LLMOS_EXPORT void llmos_scatter_page(char* const* arrays, int64_t count, int64_t bytes, int64_t page, const char* in) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(arrays[i] + page * bytes, in + i * bytes, size_t(bytes));
}

// XXH64 of `bytes` bytes, a multiple of 32 and at least 32. Words are read in this machine's order of bytes: the sum is
// for this process only.
LLMOS_EXPORT uint64_t llmos_xxh64(const char* data, int64_t bytes) {
  uint64_t lanes[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  for (int64_t at = 0; at < bytes; at += 32) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] = round_of(lanes[lane], word_at(data + at + 8 * lane));
  }
  uint64_t sum = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
  for (uint64_t lane : lanes) sum = (sum ^ round_of(0, lane)) * kPrime1 + kPrime4;
  sum += uint64_t(bytes);
  sum = (sum ^ sum >> 33) * kPrime2;
  sum = (sum ^ sum >> 29) * kPrime3;
  return sum ^ sum >> 32;
}
