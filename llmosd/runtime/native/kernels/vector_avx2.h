// AVX2 + FMA + F16C; with its VNNI, four int8 products and their sum are one instruction.
#pragma once

#include <immintrin.h>

namespace llmos {
namespace LLMOS_ISA {

using F = __m256;
constexpr int kLanes = 8, kSums = 12, kDotRows = 4;

inline F zero() { return _mm256_setzero_ps(); }
inline F broadcast(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store(Half* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(int8_t* p, F v) {  // to nearest, saturated
  const __m256i wide = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F maximum(F a, F b) { return _mm256_max_ps(a, b); }
inline F absolute(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F nearest(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power_of_two(F a, F n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline float largest(F v) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
inline float sum(F v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}

inline Half to_half(float x) { return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))}; }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(Half* p, float x) { *p = to_half(x); }

// Codes of 32 activations from 32 floats times `inverse`; returns the sum of the codes.
inline int32_t quantise_block(const float* x, float inverse, int8_t* codes) {
  const F scale = broadcast(inverse);
  __m256i r[4];
  for (int i = 0; i < 4; ++i) r[i] = _mm256_cvtps_epi32(mul(load(x + 8 * i), scale));
  const __m256i total = _mm256_add_epi32(_mm256_add_epi32(r[0], r[1]), _mm256_add_epi32(r[2], r[3]));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(r[0], r[1]), _mm256_packs_epi32(r[2], r[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undo the lane-wise interleaving of the packs
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_permutevar8x32_epi32(bytes, order));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

using Bytes = __m256i;  // 8 columns × 4 codes
using Quad = __m256i;   // the same 4 activation codes in each column

inline Bytes load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
inline Quad broadcast_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

#if defined(__AVXVNNI__)
inline __m256i add_products(__m256i sums, __m256i codes, __m256i x) {  // unsigned times signed, exact
  return _mm256_dpbusd_avx_epi32(sums, codes, x);
}
#else
// Fixes the order of a sum: compilers that regroup integer additions compute all products first and spill them.
inline void settle(__m256i& sums) { asm("" : "+x"(sums)); }

inline __m256i add_products(__m256i sums, __m256i codes, __m256i x) {  // exact while two products fit 16 bits
  const __m256i pairs = _mm256_maddubs_epi16(codes, x);
  sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  settle(sums);
  return sums;
}
#endif

// Sum over a block of int8 times int8: |w| · (x with w's sign), as the product instruction wants one side unsigned.
// Exact for w = -128 too, whose magnitude is an unsigned 128; activations are at least -127.
struct Dot8 {
  __m256i sums = _mm256_setzero_si256();
  void add(Bytes w, Quad x) { sums = add_products(sums, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }
  F value() const { return _mm256_cvtepi32_ps(sums); }
};

// Sum over a block of unsigned 4-bit codes times int8.
#if defined(__AVXVNNI__)
struct Dot4 {
  __m256i sums = _mm256_setzero_si256();
  void add(Bytes w, Quad x) { sums = add_products(sums, w, x); }
  F value() const { return _mm256_cvtepi32_ps(sums); }
};
#else
// 8 pairs of products fit 16 bits: 15 · 127 · 2 · 8 = 30,480 < 32,768.
struct Dot4 {
  __m256i sums = _mm256_setzero_si256();
  void add(Bytes w, Quad x) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x));
    settle(sums);
  }
  F value() const { return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1))); }
};
#endif

}  // namespace LLMOS_ISA
}  // namespace llmos
