// The CPU's lanes for philox.h: 64-bit lanes in one vector register, and the widening multiply that SSE2, AVX2 and NEON
// have. The compile flags of kernels_cpu.cpp choose the vector; other architectures take the scalar path of the
// compiler's generic vectors. The bits are the same everywhere, because this is integer arithmetic.
#pragma once

#include "philox.h"

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fastdc {
namespace {

#if defined(__AVX2__)
using WideLanes = uint64_t __attribute__((vector_size(32)));
#else
using WideLanes = uint64_t __attribute__((vector_size(16)));
#endif

}  // namespace

template <>
struct LowProduct<WideLanes> {
  FASTDC_HD_MEMBER static WideLanes of(WideLanes a, uint32_t m) {
#if defined(__AVX2__)
    return reinterpret_cast<WideLanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(m)));
#elif defined(__SSE2__)
    return reinterpret_cast<WideLanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(m)));
#elif defined(__ARM_NEON)
    return reinterpret_cast<WideLanes>(vmull_n_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), m));
#else
    return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(m);
#endif
  }
};

namespace {

constexpr int kWideLanes = static_cast<int>(sizeof(WideLanes) / sizeof(uint64_t));
constexpr int kBlocksPerTile = 16;
constexpr int kTile = 4 * kBlocksPerTile;  // normals made at a time

FASTDC_HD WideLanes broadcast(uint32_t word) { return WideLanes{} + static_cast<uint64_t>(word); }

// Returns first, first + 2, first + 4, ...: the counters of every second block.
FASTDC_HD WideLanes every_second(uint32_t first) {
  uint64_t words[kWideLanes];
  for (int i = 0; i < kWideLanes; ++i) words[i] = first + static_cast<uint32_t>(2 * i);
  WideLanes lanes;
  __builtin_memcpy(&lanes, words, sizeof lanes);
  return lanes;
}

// Stores the low halves of even and odd as interleaved 32-bit words (even 0, odd 0, even 1, odd 1, ...).
FASTDC_HD void store_interleaved(WideLanes even, WideLanes odd, uint32_t* words) {
  const WideLanes packed = (even & 0xFFFFFFFFu) | (odd << 32);
  __builtin_memcpy(words, &packed, sizeof packed);
}

// Makes the words of blocks first ... first + 15: word k of block l is words[k][l]. Even and odd blocks are kept in
// separate registers and interleaved once at the end.
FASTDC_HD void philox_tile(uint32_t first, NoiseId id, PhiloxKey key, uint32_t (&words)[4][kBlocksPerTile]) {
  for (int l = 0; l < kBlocksPerTile; l += 2 * kWideLanes) {
    WideLanes even[4] = {every_second(first + static_cast<uint32_t>(l)), broadcast(id.draw), broadcast(id.stream_low),
                         broadcast(id.stream_high_purpose)};
    WideLanes odd[4] = {every_second(first + static_cast<uint32_t>(l) + 1), even[1], even[2], even[3]};
    philox4x32_10(even[0], even[1], even[2], even[3], key);
    philox4x32_10(odd[0], odd[1], odd[2], odd[3], key);
    for (int word = 0; word < 4; ++word) store_interleaved(even[word], odd[word], &words[word][l]);
  }
}

// Makes the normals of elements kTile * tile ... kTile * tile + kTile - 1 of (stream, draw).
FASTDC_HD void normal_tile(int64_t tile, NoiseId id, PhiloxKey key, float* __restrict__ normals) {
  uint32_t words[4][kBlocksPerTile];
  philox_tile(static_cast<uint32_t>(tile * kBlocksPerTile), id, key, words);
  float parts[4][kBlocksPerTile];
  for (int l = 0; l < kBlocksPerTile; ++l) box_muller(words[0][l], words[1][l], parts[0][l], parts[1][l]);
  for (int l = 0; l < kBlocksPerTile; ++l) box_muller(words[2][l], words[3][l], parts[2][l], parts[3][l]);
  for (int l = 0; l < kBlocksPerTile; ++l) {
    for (int part = 0; part < 4; ++part) normals[4 * l + part] = parts[part][l];
  }
}

}  // namespace
}  // namespace fastdc
