// What the host compiler and nvcc share: function qualifiers and the pixel types neither has as a language type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LA_HD __host__ __device__ __forceinline__
#else
#define LA_HD inline
#endif
#ifdef __CUDA_ARCH__
#define LA_UNROLL _Pragma("unroll")
#define LA_CALL __noinline__  // a real call: what it needs takes no registers from the caller
#else
#define LA_UNROLL
#define LA_CALL
#endif

namespace lesionaug {

enum class Dtype : int { kInt16, kUint8, kUint16, kFloat16, kBfloat16, kFloat32, kFloat64 };

struct Float16 {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

LA_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LA_HD float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LA_HD float to_float(Bfloat16 value) { return bits_float(uint32_t(value.bits) << 16); }

LA_HD float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t fraction = value.bits & 0x3FFu;
  if (exponent == 0) {  // zero and subnormals are exact multiples of 2^-24
    const float magnitude = float(fraction) * 5.9604644775390625e-08f;
    return bits_float(float_bits(magnitude) | sign);
  }
  const uint32_t high = exponent == 31 ? 0x7F800000u : (exponent + 112) << 23;
  return bits_float(sign | high | (fraction << 13));
}

// Both conversions round half to even, overflow to infinity and keep NaN.
LA_HD Bfloat16 to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {uint16_t((bits >> 16) | 0x40u)};
  return {uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

LA_HD Float16 to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {uint16_t(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {uint16_t(sign | 0x7C00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                    // below 2^-14: the result is a subnormal
    // Adding 0.5 lets the float adder itself do the rounding to multiples of 2^-24.
    const uint32_t rounded = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u;
    return {uint16_t(sign | rounded)};
  }
  const uint32_t rebased = magnitude - 0x38000000u;
  return {uint16_t(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13))};
}

template <class T>
LA_HD T to_compute(Float16 value) {
  return T(to_float(value));
}
template <class T>
LA_HD T to_compute(Bfloat16 value) {
  return T(to_float(value));
}
template <class T, class S>
LA_HD T to_compute(S value) {
  return T(value);
}

}  // namespace lesionaug
