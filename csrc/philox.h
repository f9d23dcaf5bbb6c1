// Noise as a function of a counter: Philox4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy as 1, 2, 3")
// followed by Box-Muller. No state, no stream position: normal number e of an image under a draw is
//
//   word   = philox(counter, key)[e % 4]
//   counter = (e / 4, draw, stream[0:32), purpose | stream[32:56) << 8)      key = (seed[0:32), seed[32:64))
//
// `stream` (56 bits) names the image or the noisy copy of an image. `purpose` (8 bits) separates the draws of a
// diffusion classifier from the noise of randomized smoothing and of samplers. The class is not in the counter, so all
// classes of an image see the same noise by construction. This layout is part of the public contract: it never changes
// within a major version, because saved results are replayed from (seed, stream, draw).
//
// The four words form two pairs, (w0, w1) and (w2, w3). Each pair gives a radius and an angle:
//
//   u = ((w_even >> 1) + 1/2) * 2^-31  in (0, 1]     r = sqrt(-2 ln u)  in [0, 6.67]
//   quadrant = w_odd >> 30,  phi = pi/4 * (int32(w_odd << 2) / 2^31)  in [-pi/4, pi/4)
//   (normal_0, normal_1) = r * (cos, sin)(quadrant * pi/2 + phi)
//
// ln, sin and cos are our own polynomials (coefficients fitted by tools/fit_polynomials.py) in correctly rounded
// +, -, *, / and sqrt only. With contraction and fast-math off, every CPU instruction set and CUDA give the same bits.
#pragma once

#include "common.h"

#if defined(__CUDA_ARCH__)
#define FASTDC_SQRT(x) __fsqrt_rn(x)
#define FASTDC_BITS_TO_FLOAT(x) __uint_as_float(x)
#define FASTDC_FLOAT_TO_BITS(x) __float_as_uint(x)
#else
#define FASTDC_SQRT(x) __builtin_sqrtf(x)
#define FASTDC_BITS_TO_FLOAT(x) ::fastdc::bits_to_float(x)
#define FASTDC_FLOAT_TO_BITS(x) ::fastdc::float_to_bits(x)
#endif

namespace fastdc {

#if !defined(__CUDA_ARCH__)
FASTDC_HD float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
FASTDC_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
#endif

struct PhiloxKey {
  uint32_t k0, k1;
};

// The part of the counter that all elements of one (image, draw) share.
struct NoiseId {
  uint32_t draw, stream_low, stream_high_purpose;
};

FASTDC_HD PhiloxKey philox_key(uint64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// stream: below 2^56; purpose: below 2^8 (checked at the boundary).
FASTDC_HD NoiseId noise_id(uint64_t stream, uint32_t draw, uint32_t purpose) {
  return {draw, static_cast<uint32_t>(stream), purpose | static_cast<uint32_t>(stream >> 32) << 8};
}

// The low 32 bits of `a` times `m`, as 64 bits; for scalars here, for the CPU's vector lanes in lanes.h.
template <class Wide>
struct LowProduct;
template <>
struct LowProduct<uint64_t> {
  FASTDC_HD_MEMBER static uint64_t of(uint64_t a, uint32_t m) {
#if defined(__CUDA_ARCH__)
    uint64_t product;  // nvcc compiles the C++ expression to a 64-bit product: 8 % more instructions per block
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(m));
    return product;
#else
    return (a & 0xFFFFFFFFu) * m;
#endif
  }
};

// Computes ten rounds in place. Wide is uint64_t or a vector of such lanes. Only the low half of a lane is meaningful,
// and the multiplication ignores the high half, so that no lane must be masked or shuffled between rounds.
template <class Wide>
FASTDC_HD void philox4x32_10(Wide& c0, Wide& c1, Wide& c2, Wide& c3, PhiloxKey key) {
  uint32_t k0 = key.k0, k1 = key.k1;
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const Wide p0 = LowProduct<Wide>::of(c0, 0xD2511F53u);
    const Wide p1 = LowProduct<Wide>::of(c2, 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(k0);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(k1);
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Computes -2 ln u of the word's u in (0, 1]: ln u = exponent * ln 2 + ln m with m in [sqrt(1/2), sqrt(2)) and
// ln m = 2 s + s z P(z), s = (m - 1) / (m + 1), z = s^2.
FASTDC_HD float minus_two_ln_uniform(uint32_t word) {
  const float u = (static_cast<float>(static_cast<int32_t>(word >> 1)) + 0.5f) * 0x1p-31f;
  constexpr uint32_t kSqrtHalf = 0x3F3504F3u;  // bits of sqrt(1/2)
  const uint32_t offset = FASTDC_FLOAT_TO_BITS(u) - kSqrtHalf;
  const float exponent = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float m = FASTDC_BITS_TO_FLOAT((offset & 0x007FFFFFu) + kSqrtHalf);
  const float f = m - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float tail = z * (0.666666687f + z * (0.400001228f + z * (0.285508215f + z * 0.233304679f)));
  const float ln_m = 2.0f * s + s * tail;
  return -2.0f * (exponent * 0.693147182f + ln_m);
}

// Makes two independent standard normals from two words (Box-Muller).
FASTDC_HD void box_muller(uint32_t radius_word, uint32_t angle_word, float& normal_0, float& normal_1) {
  const float r = FASTDC_SQRT(minus_two_ln_uniform(radius_word));
  const float x = static_cast<float>(static_cast<int32_t>(angle_word << 2)) * (0.785398163f * 0x1p-31f);
  const float z = x * x;
  const float sine = x + x * (z * (-0.166666642f + z * (0.00833274797f + z * -0.000195878907f)));
  const float cosine = (1.0f - 0.5f * z) + (z * z) * (0.0416666642f + z * (-0.00138883025f + z * 2.45479423e-05f));
  // Quadrants 0..3 turn (cos, sin) into (c, s), (-s, c), (-c, -s), (s, -c).
  const uint32_t quadrant = angle_word >> 30;
  const bool odd = (quadrant & 1u) != 0;
  const uint32_t first = FASTDC_FLOAT_TO_BITS(odd ? sine : cosine) ^ (((quadrant + 1u) & 2u) << 30);
  const uint32_t second = FASTDC_FLOAT_TO_BITS(odd ? cosine : sine) ^ ((quadrant & 2u) << 30);
  normal_0 = r * FASTDC_BITS_TO_FLOAT(first);
  normal_1 = r * FASTDC_BITS_TO_FLOAT(second);
}

// Makes the four normals of one block: elements 4 * block ... 4 * block + 3 of (stream, draw).
FASTDC_HD void normal_block(uint32_t block, NoiseId id, PhiloxKey key, float (&normals)[4]) {
  uint64_t c0 = block, c1 = id.draw, c2 = id.stream_low, c3 = id.stream_high_purpose;
  philox4x32_10(c0, c1, c2, c3, key);
  box_muller(static_cast<uint32_t>(c0), static_cast<uint32_t>(c1), normals[0], normals[1]);
  box_muller(static_cast<uint32_t>(c2), static_cast<uint32_t>(c3), normals[2], normals[3]);
}

}  // namespace fastdc
