// Loads and stores of the network's element types. Arithmetic is float32 throughout; only memory is 16 bits wide.
// Stores round to nearest, ties to even, as hardware does. The host versions manipulate bits with as few branches on
// the value's class as possible, so that loops over them vectorise on every instruction set.
#pragma once

#include "philox.h"  // bit casts

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace fastdc {

FASTDC_HD float load(float value) { return value; }

FASTDC_HD float load(BFloat16 value) { return FASTDC_BITS_TO_FLOAT(static_cast<uint32_t>(value.bits) << 16); }

FASTDC_HD float load(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // Normal halves: rebias the exponent. Subnormals count units of 2^-24, the last bit of floats in [0.5, 1). This is
  // exact, and a flush-to-zero mode of the caller's thread cannot change it, as it could a float subnormal.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const int32_t bits = value.bits & 0x7FFF;  // signed: SSE2 compares only signed integers
  const uint32_t shifted = static_cast<uint32_t>(bits) << 13;
  const uint32_t normal = shifted + 0x38000000u;
  const uint32_t subnormal =
      FASTDC_FLOAT_TO_BITS(FASTDC_BITS_TO_FLOAT(static_cast<uint32_t>(bits) + 0x3F000000u) - 0.5f);
  const uint32_t finite = bits < 0x0400 ? subnormal : normal;
  const uint32_t magnitude = bits > 0x7BFF ? shifted | 0x7F800000u : finite;  // infinity, NaN
  return FASTDC_BITS_TO_FLOAT(magnitude | sign);
#endif
}

FASTDC_HD void store(float value, float& out) { out = value; }

FASTDC_HD void store(float value, BFloat16& out) {
  const uint32_t bits = FASTDC_FLOAT_TO_BITS(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out.bits = static_cast<uint16_t>(is_nan ? 0x7FC0u | (bits >> 16) : rounded);
}

FASTDC_HD void store(float value, Half& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = FASTDC_FLOAT_TO_BITS(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Normal halves: rebias the exponent and round at bit 13. Subnormals: adding 0.5 in float moves the rounding point to
  // the half's last bit (its unit is 2^-24, that of floats in [0.5, 1)). Overflow saturates to infinity as IEEE asks.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = FASTDC_FLOAT_TO_BITS(FASTDC_BITS_TO_FLOAT(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;
  half = magnitude > 0x7F800000u ? 0x7E00u : half;
  out.bits = static_cast<uint16_t>(half | sign);
#endif
}

// Calls body(typed pointer) for the element type of the network's input or output, on the host.
template <class Body>
static inline void with_dtype(DType dtype, const void* data, Body&& body) {
  switch (dtype) {
    case DType::kFloat32: return body(static_cast<const float*>(data));
    case DType::kFloat16: return body(static_cast<const Half*>(data));
    case DType::kBFloat16: return body(static_cast<const BFloat16*>(data));
  }
}

}  // namespace fastdc
