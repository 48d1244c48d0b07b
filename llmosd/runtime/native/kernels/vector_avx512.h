// AVX-512 with VNNI: sixteen lanes, and twice the registers of AVX2.
#pragma once

#include <immintrin.h>

namespace llmos {
namespace LLMOS_ISA {

using F = __m512;
constexpr int kLanes = 16, kSums = 24, kDotRows = 8;

inline F zero() { return _mm512_setzero_ps(); }
inline F broadcast(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store(Half* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(int8_t* p, __m512i v) {  // saturated
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}
inline void store(int8_t* p, F v) { store(p, _mm512_cvtps_epi32(v)); }  // to nearest
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
inline F absolute(F a) { return _mm512_abs_ps(a); }
inline F nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power_of_two(F a, F n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
}
inline float largest(F v) { return _mm512_reduce_max_ps(v); }
inline float sum(F v) { return _mm512_reduce_add_ps(v); }

inline Half to_half(float x) { return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))}; }
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(Half* p, float x) { *p = to_half(x); }

inline int32_t quantise_block(const float* x, float inverse, int8_t* codes) {
  const F scale = broadcast(inverse);
  const __m512i low = _mm512_cvtps_epi32(mul(load(x), scale)), high = _mm512_cvtps_epi32(mul(load(x + kLanes), scale));
  store(codes, low);
  store(codes + kLanes, high);
  return _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}

using Bytes = __m512i;  // 16 columns × 4 codes
using Quad = __m512i;

inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline Quad broadcast_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

struct Dot8 {  // as AVX2's: |w| · (x with w's sign)
  __m512i sums = _mm512_setzero_si512();
  void add(Bytes w, Quad x) {
    const Quad signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    sums = _mm512_dpbusd_epi32(sums, _mm512_abs_epi8(w), signed_x);
  }
  F value() const { return _mm512_cvtepi32_ps(sums); }
};

struct Dot4 {
  __m512i sums = _mm512_setzero_si512();
  void add(Bytes w, Quad x) { sums = _mm512_dpbusd_epi32(sums, w, x); }
  F value() const { return _mm512_cvtepi32_ps(sums); }
};

}  // namespace LLMOS_ISA
}  // namespace llmos
