// Block-quantised weights times float32 activations on AMX's bfloat16 tiles, for many rows: weights become bfloat16 once
// for all of them, and nothing is left to do between blocks.
//
// Both sides are rounded to 8 bits of mantissa; sums are float32, one chain in ascending order of blocks for every row.
// These are other bits than those of quantised.h.
//
// A weight is computed in float16, two to a lane, as 64 times itself. Shortened to bfloat16's mantissa its bits mean 2^-112
// of that, and less than 1e-6 of a weight becomes zero; activations are 2^106 times themselves, and products are right.
// Neither 64 times a weight nor such an activation may exceed what its type holds: 1,023 and 4,190,000 are fine.
#pragma once

#include "tile_pairs.h"

namespace llmos {
namespace LLMOS_ISA {

constexpr int kRoundedDepth = 9;  // blocks whose weights lie unpacked: activations pass by in the same first-level cache
constexpr float kActivationScale = 0x1p106f;

using Words = __m512i;  // 32 of 16 bits; two make a lane

struct alignas(kCacheLine) WordTable {
  uint16_t at[2 * kSide];
  Words load() const { return _mm512_load_si512(at); }
};
template <class Word>
constexpr WordTable table_of(Word word) {
  WordTable table{};
  for (int i = 0; i < 2 * kSide; ++i) table.at[i] = uint16_t(word(i));
  return table;
}

// Float16 arithmetic, by the assembler where compilers do not know it yet. What does not fit is cut off: a result that is
// rounded to even shorter numbers afterwards is then as near as if it had been rounded once.
inline Words half_multiply(Words a, Words b) {
  Words product;
  asm("vmulph %{rz-sae%}, %2, %1, %0" : "=v"(product) : "v"(a), "v"(b));
  return product;
}
inline Words half_fma(Words a, Words b, Words c) {
  asm("vfmadd213ph %{rz-sae%}, %2, %1, %0" : "+v"(a) : "v"(b), "v"(c));
  return a;
}
inline Words half_of_integers(Words a) {
  Words values;
  asm("vcvtw2ph %1, %0" : "=v"(values) : "v"(a));
  return values;
}

constexpr int half_bits(int n) {  // of a small integer's float16
  int exponent = 0;
  while (n >> (exponent + 1)) ++exponent;
  return n ? (exponent + 15) << 10 | (n << 10 >> exponent & 0x3ff) : 0;
}

inline Words weight_scale() { return _mm512_set1_epi16(half_bits(64)); }

// Float16 as bfloat16: a product by 2^12 of which the upper half is taken, rounded, is a shift by 3; of the copies of the
// sign that this leaves in the exponent, one stays.
inline Words shortened(Words halves) {
  const Words shifted = _mm512_mulhrs_epi16(halves, _mm512_set1_epi16(1 << 12));
  return _mm512_and_si512(shifted, _mm512_set1_epi16(int16_t(0x8fff)));
}

// Pair 4j + i of a block has those codes that a shift of packed lane j by 4i bits brings to the ends of both its words:
// elements e and e + 2, e being 4j + i / 2, and 16 more if i is odd.
inline Words activation_pairs(F low, F high) {
  static constexpr WordTable kOrder = table_of([](int word) {
    const int pair = word / 2, element = pair / 4 * 4 + pair % 4 / 2 + word % 2 * 2;
    return 2 * element + pair % 2;  // where `pairs` has it
  });
  const F scale = broadcast(kActivationScale);
  return _mm512_permutexvar_epi16(kOrder.load(), pairs(mul(low, scale), mul(high, scale)));
}

inline void round_activations(const float* x, int64_t k, int64_t row, uint32_t* tiles) {
  round_row(x, k, row, tiles, activation_pairs);
}

// One block of a column group, packed as packed.h describes it.
template <int kBits>
inline void round_block(const uint8_t* codes, const Half* scales, PairTile& to) {
  constexpr int kChunk = Packed<kBits>::kChunk;
  static constexpr WordTable kScaleOf = table_of([](int word) { return word / 2; });
  if constexpr (kBits == 4) {
    static constexpr WordTable kMinimumOf = table_of([](int word) { return kColumns + word / 2; });
    static constexpr WordTable kValues = table_of([](int code) { return half_bits(code % 16); });
    const Words both = half_multiply(_mm512_loadu_si512(scales), weight_scale());
    const Words scale = _mm512_permutexvar_epi16(kScaleOf.load(), both);
    const Words minimum = _mm512_permutexvar_epi16(kMinimumOf.load(), both);
    for (int j = 0; j < 4; ++j) {
      const Bytes bytes = load_bytes(codes + j * kChunk);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // a look-up counts the lowest 5 bits of its index, of which the values need 4
        const Words values = _mm512_permutexvar_epi16(_mm512_srli_epi32(bytes, 4 * i), kValues.load());
        _mm512_store_si512(to[4 * j + i], shortened(half_fma(values, scale, minimum)));
      }
    }
  } else {
    const Words all = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales)));
    const Words scale = half_multiply(_mm512_permutexvar_epi16(kScaleOf.load(), all), weight_scale());
    const auto weight = [&](Words upper) {  // codes in words' upper bytes
      return shortened(half_multiply(half_of_integers(_mm512_srai_epi16(upper, 8)), scale));
    };
    for (int j = 0; j < 8; ++j) {
      const Bytes bytes = load_bytes(codes + j * kChunk);
      const int pair = j % 4 * 4 + j / 4;
      _mm512_store_si512(to[pair], weight(_mm512_slli_epi16(bytes, 8)));
      _mm512_store_si512(to[pair + 2], weight(bytes));
    }
  }
}

// As many of 32 rows and 32 columns as exist, over blocks [from, from + count) of `depth`.
inline void multiply_part(const uint32_t* x, int64_t depth, const PairTile (*weights)[2], int64_t from, int count,
                          float* y, int64_t y_stride, int rows, int columns) {
  const bool tall = rows > kSide, wide = columns > kSide;
  alignas(kCacheLine) float aside[2 * kSide][2 * kSide];
  const bool whole = rows % kSide == 0 && columns % kSide == 0;
  float* const to = whole ? y : aside[0];
  const int64_t stride = whole ? y_stride : 2 * kSide;
  if (!whole && from)
    for (int r = 0; r < rows; ++r) std::memcpy(aside[r], y + r * y_stride, columns * sizeof(float));
  const auto call = [&](auto run) { run(x + from * kTileElements, depth, weights, count, to, stride); };
  if (from)
    tall ? wide ? call(multiply_pairs<2, 2, true>) : call(multiply_pairs<2, 1, true>)
         : wide ? call(multiply_pairs<1, 2, true>) : call(multiply_pairs<1, 1, true>);
  else
    tall ? wide ? call(multiply_pairs<2, 2, false>) : call(multiply_pairs<2, 1, false>)
         : wide ? call(multiply_pairs<1, 2, false>) : call(multiply_pairs<1, 1, false>);
  if (!whole)
    for (int r = 0; r < rows; ++r) std::memcpy(y + r * y_stride, aside[r], columns * sizeof(float));
}

// Column groups [begin, end) of all rows; `x` holds whole tiles, whatever is in the rows beyond the last.
template <int kBits>
void rounded(const QuantisedWeights& weights, const uint32_t* x, int64_t rows, int64_t begin, int64_t end,
             const Output& y) {
  using P = Packed<kBits>;
  const int64_t blocks = weights.k / kBlock, parts = (blocks + kRoundedDepth - 1) / kRoundedDepth;
  alignas(kCacheLine) PairTile unpacked[kRoundedDepth][2];
  const Tiles tiles(kPairShapes);
  for (int64_t g = begin; g < end; g += kStripeGroups) {
    const int64_t groups = smaller<int64_t>(kStripeGroups, end - g);
    const int columns = int(smaller<int64_t>(groups * kColumns, weights.columns - g * kColumns));
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = blocks * i / parts;
      const int count = int(blocks * (i + 1) / parts - from);
      for (int64_t n = 0; n < groups; ++n) {
        const int64_t here = (g + n) * blocks + from, after = i + 1 < parts ? here + count : (g + n + kStripeGroups) * blocks;
        const WeightLanes now{weights.codes + here * P::kCodes, weights.scales + here * P::kScales};
        const WeightLanes next{weights.codes + after * P::kCodes, weights.scales + after * P::kScales};
        for (int b = 0; b < count; ++b) {
          round_block<kBits>(now.codes + b * P::kCodes, now.scales + b * P::kScales, unpacked[b][n]);
          prefetch_block<kBits>(next, b);
        }
      }
      for (int64_t r = 0; r < rows; r += 2 * kSide)
        multiply_part(x + r / kSide * blocks * kTileElements, blocks, unpacked, from, count,
                      y.of(r, g - begin), y.row_stride,
                      int(smaller<int64_t>(2 * kSide, rows - r)), columns);
    }
  }
}

}  // namespace LLMOS_ISA
}  // namespace llmos
