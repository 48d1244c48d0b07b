// Block-quantised weights as they lie in memory.
//
// Weights are packed by 16 columns and blocks of 32 elements (see packing.py), in the order in which they are used, so that
// what a thread reads is one stream of memory:
//   4 bits: 4 chunks of 64 bytes; byte 4c + i of chunk j holds column c, low nibble element 4j + i, high nibble 16 + 4j + i
//   8 bits: 8 chunks of 64 bytes; byte 4c + i of chunk j holds column c, element 4j + i
#pragma once

#include "vector.h"

namespace llmos {
namespace LLMOS_ISA {

// Of a group of columns; a vector takes all of them or one of two halves.
template <int kBits>
struct Packed {
  static constexpr int kChunk = 4 * kColumns;                           // bytes
  static constexpr int kCodes = kBits * kChunk;                         // bytes of a block
  static constexpr int kScales = kBits == 4 ? 2 * kColumns : kColumns;  // of a block: scales, and for 4 bits minima
};
constexpr int kHalves = kColumns / kLanes;

struct WeightLanes {
  const uint8_t* codes;
  const Half* scales;
  bool leads = true;  // the first of its group to be read
};

// The weights' way from memory is what counts with few rows. What lies beyond the end of the array is only hinted at,
// never read.
constexpr int kAhead = 4096;  // bytes

template <int kBits>
inline void prefetch_block(const WeightLanes& w, int block) {
  using P = Packed<kBits>;
  if (!w.leads) return;
  prefetch(w.codes + block * P::kCodes, P::kCodes);
  prefetch(w.scales + block * P::kScales);
}

}  // namespace LLMOS_ISA
}  // namespace llmos
