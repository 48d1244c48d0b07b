// aarch64 NEON: two registers of four lanes. The int8 products use the dot-product extension where it is compiled in.
#pragma once

#include <arm_neon.h>

namespace llmos {
namespace LLMOS_ISA {

struct F {
  float32x4_t a, b;
};
constexpr int kLanes = 8, kSums = 12, kDotRows = 4;

inline F zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
inline F broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline F load(const Half* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
inline F load(const int8_t* p) {
  const int16x8_t wide = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}
inline void store(float* p, F v) {
  vst1q_f32(p, v.a);
  vst1q_f32(p + 4, v.b);
}
inline void store(Half* p, F v) {
  vst1q_u16(&p->bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.a), v.b)));
}
inline void store(int8_t* p, F v) {  // to nearest, saturated
  const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(v.a)), high = vqmovn_s32(vcvtnq_s32_f32(v.b));
  vst1_s8(p, vqmovn_s16(vcombine_s16(low, high)));
}
inline F add(F x, F y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline F sub(F x, F y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline F mul(F x, F y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline F div(F x, F y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
inline F maximum(F x, F y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
inline F absolute(F x) { return {vabsq_f32(x.a), vabsq_f32(x.b)}; }
inline F nearest(F x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b)}; }
inline float32x4_t power_of_two(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
inline F times_power_of_two(F x, F n) {
  return {vmulq_f32(x.a, power_of_two(n.a)), vmulq_f32(x.b, power_of_two(n.b))};
}
inline float largest(F v) { return vmaxvq_f32(vmaxq_f32(v.a, v.b)); }
inline float sum(F v) { return vaddvq_f32(vaddq_f32(v.a, v.b)); }

inline void store_one(float* p, float x) { *p = x; }
inline void store_one(Half* p, float x) {
  const float16x4_t h = vcvt_f16_f32(vdupq_n_f32(x));
  p->bits = vget_lane_u16(vreinterpret_u16_f16(h), 0);
}

inline int32_t quantise_block(const float* x, float inverse, int8_t* codes) {
  int32_t total = 0;
  for (int i = 0; i < kBlock; i += 8) {
    const F scaled = mul(load(x + i), broadcast(inverse));
    const int16x8_t wide = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(scaled.a)), vqmovn_s32(vcvtnq_s32_f32(scaled.b)));
    vst1_s8(codes + i, vqmovn_s16(wide));
    total += vaddlvq_s16(wide);
  }
  return total;
}

struct Bytes {
  int8x16_t a, b;
};
using Quad = int8x16_t;

inline Bytes load_bytes(const uint8_t* p) {
  return {vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + 16))};
}
inline Bytes low_nibbles(Bytes v) { return {vandq_s8(v.a, vdupq_n_s8(15)), vandq_s8(v.b, vdupq_n_s8(15))}; }
inline int8x16_t high_half(int8x16_t v) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)); }
inline Bytes high_nibbles(Bytes v) { return {high_half(v.a), high_half(v.b)}; }
inline Quad broadcast_quad(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

inline int32x4_t accumulate(int32x4_t sums, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, w, x);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

struct Dot8 {
  int32x4_t a = vdupq_n_s32(0), b = vdupq_n_s32(0);
  void add(Bytes w, Quad x) {
    a = accumulate(a, w.a, x);
    b = accumulate(b, w.b, x);
  }
  F value() const { return {vcvtq_f32_s32(a), vcvtq_f32_s32(b)}; }
};
using Dot4 = Dot8;  // 4-bit codes are small int8 values

}  // namespace LLMOS_ISA
}  // namespace llmos
