// Float lanes and the int8 dot products, for the instruction set that this file is compiled for.
//
// F has kLanes floats, 8 or 16. kSums of them stay in registers beside what a step of a matrix product needs, and the
// sums of kDotRows rows beside what a step of the int8 products needs. A vector of weights is kLanes columns: a
// packed group, or half of one.
//
// Each kernel is written once against this interface. Multiply-adds are explicit (the build turns contraction
// off), so a row's bits do not depend on which tile shape the compiler saw.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(LLMOS_PORTABLE)
#include "vector_portable.h"
#elif defined(__AVX512VNNI__)
#include "vector_avx512.h"
#elif defined(__AVX2__)
#include "vector_avx2.h"
#elif defined(__ARM_NEON)
#include "vector_neon.h"
#else
#include "vector_portable.h"
#endif

namespace llmos {
namespace LLMOS_ISA {

// GCC takes a function that only asks for memory for one without effect and drops calls of it; the statement that
// follows keeps them.
inline void prefetch(const void* p) {
  __builtin_prefetch(p);
  asm volatile("" : : "r"(p));
}

// `count` elements.
template <class T>
inline void prefetch(const T* first, int64_t count) {
  for (int64_t i = 0; i < count; i += kCacheLine / int64_t(sizeof(T))) prefetch(first + i);
}

template <class T>
inline T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
inline T larger(T a, T b) {
  return a < b ? b : a;
}

// exp(x) for x <= 88 within 2 ulp; below -87 it stays at exp(-87). Range reduction by ln 2 in two parts and a degree-5
// polynomial (Cephes' expf coefficients).
inline F exponential(F x) {
  x = maximum(broadcast(-87.0f), x);
  const F n = nearest(mul(x, broadcast(1.44269504088896341f)));
  F r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F p = fma(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return times_power_of_two(fma(p, mul(r, r), add(r, broadcast(1.0f))), n);
}

inline float exponential(float x) {
  float lanes[kLanes];
  store(lanes, exponential(broadcast(x)));
  return lanes[0];
}

}  // namespace LLMOS_ISA
}  // namespace llmos
