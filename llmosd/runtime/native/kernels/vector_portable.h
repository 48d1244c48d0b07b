// Plain C++ for every other processor; the compiler vectorises the loops as far as its baseline allows.
#pragma once

#include <cmath>

namespace llmos {
namespace LLMOS_ISA {

constexpr int kLanes = 8, kSums = 12, kDotRows = 4;

struct F {
  float lane[kLanes];
};

template <class Call>
inline F each(Call call) {
  F r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = call(i);
  return r;
}

// IEEE 754 binary16, round to nearest even; subnormals by a float addition that aligns the mantissa.
inline float to_float(Half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, magnitude = uint32_t(h.bits & 0x7fff) << 13;
  uint32_t bits = magnitude + (112u << 23);
  if (magnitude >= (31u << 23)) bits += 112u << 23;  // infinity and NaN
  float value;
  if (magnitude < (1u << 23)) {  // subnormal or zero
    bits += 1u << 23;
    std::memcpy(&value, &bits, 4);
    value -= 6.103515625e-05f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline Half to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits >= 0x47800000) return {uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00))};  // overflow, infinity, NaN
  if (bits < 0x38800000) {                                                                  // subnormal or zero
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return {uint16_t(sign | (bits - 0x3f000000))};
  }
  bits += 0xc8000fff + ((bits >> 13) & 1);
  return {uint16_t(sign | (bits >> 13))};
}

inline F zero() { return F{}; }
inline F broadcast(float x) {
  return each([&](int) { return x; });
}
inline F load(const float* p) {
  return each([&](int i) { return p[i]; });
}
inline F load(const Half* p) {
  return each([&](int i) { return to_float(p[i]); });
}
inline F load(const int8_t* p) {
  return each([&](int i) { return float(p[i]); });
}
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(Half* p, float x) { *p = to_half(x); }
inline void store_one(int8_t* p, float x) {  // to nearest, saturated
  const float code = std::nearbyintf(x);
  *p = int8_t(!(code >= -128.0f) ? -128.0f : code > 127.0f ? 127.0f : code);  // NaN as well
}
template <class T>
inline void store(T* p, F v) {
  for (int i = 0; i < kLanes; ++i) store_one(p + i, v.lane[i]);
}
inline F add(F a, F b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F sub(F a, F b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline F mul(F a, F b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F div(F a, F b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline F fma(F a, F b, F c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline F maximum(F a, F b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F absolute(F a) {
  return each([&](int i) { return std::fabs(a.lane[i]); });
}
inline F nearest(F a) {
  return each([&](int i) { return std::nearbyintf(a.lane[i]); });
}
inline F times_power_of_two(F a, F n) {
  return each([&](int i) {
    const float power = n.lane[i] == n.lane[i] ? n.lane[i] : 0.0f;
    const uint32_t bits = uint32_t(int32_t(power) + 127) << 23;
    float factor;
    std::memcpy(&factor, &bits, 4);
    return a.lane[i] * factor;
  });
}
inline float largest(F v) {
  float m = v.lane[0];
  for (int i = 1; i < kLanes; ++i) m = v.lane[i] > m ? v.lane[i] : m;
  return m;
}
inline float sum(F v) {
  const float* l = v.lane;
  return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

inline int32_t quantise_block(const float* x, float inverse, int8_t* codes) {
  int32_t total = 0;
  for (int i = 0; i < kBlock; ++i) {
    float scaled = std::nearbyintf(x[i] * inverse);
    if (!(scaled >= -127.0f)) scaled = -127.0f;  // also NaN
    codes[i] = int8_t(scaled > 127.0f ? 127.0f : scaled);
    total += codes[i];
  }
  return total;
}

struct Bytes {
  uint8_t lane[32];
};
using Quad = const int8_t*;

inline Bytes load_bytes(const uint8_t* p) {
  Bytes r;
  std::memcpy(r.lane, p, 32);
  return r;
}
inline Bytes low_nibbles(Bytes v) {
  for (uint8_t& b : v.lane) b &= 15;
  return v;
}
inline Bytes high_nibbles(Bytes v) {
  for (uint8_t& b : v.lane) b >>= 4;
  return v;
}
inline Quad broadcast_quad(const int8_t* p) { return p; }

template <class Code>
struct Dot {
  int32_t sums[kLanes] = {};
  void add(const Bytes& w, Quad x) {
    for (int c = 0; c < kLanes; ++c)
      for (int i = 0; i < 4; ++i) sums[c] += Code(w.lane[4 * c + i]) * x[i];
  }
  F value() const {
    return each([&](int c) { return float(sums[c]); });
  }
};
using Dot4 = Dot<uint8_t>;
using Dot8 = Dot<int8_t>;

}  // namespace LLMOS_ISA
}  // namespace llmos
