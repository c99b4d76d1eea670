// Conversions between float and the 16-bit types: of one value, of two values in one register, and of 16 bytes.
#pragma once
#include "cuda/device/ptx.h"

namespace pypeft {

// Two floats, rounded to the nearest, in one register of a fragment; `low` is the low half of the register.
template <class T>
PYPEFT_DEVICE uint32_t pack2(float low, float high);

template <>
PYPEFT_DEVICE uint32_t pack2<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <>
PYPEFT_DEVICE uint32_t pack2<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T>
PYPEFT_DEVICE float2 unpack2(uint32_t pair);

template <>
PYPEFT_DEVICE float2 unpack2<__nv_bfloat16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
}

template <>
PYPEFT_DEVICE float2 unpack2<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

PYPEFT_DEVICE float to_float(float value) { return value; }
PYPEFT_DEVICE float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
PYPEFT_DEVICE float to_float(__half value) { return __half2float(value); }

template <class T>
PYPEFT_DEVICE T from_float(float value);
template <>
PYPEFT_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
PYPEFT_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
PYPEFT_DEVICE __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

// 16 bytes of T as floats.
template <class T>
PYPEFT_DEVICE void unpack_chunk(float (&values)[16 / sizeof(T)], const uint4& chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 two = unpack2<T>(words[i]);
      values[2 * i] = two.x, values[2 * i + 1] = two.y;
    }
  }
}

}  // namespace pypeft
