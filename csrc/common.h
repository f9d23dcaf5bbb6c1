// Definitions that every file of the native module shares: the qualifier with which one body compiles for host and
// device, and the element types of the network's input and output.
//
// FASTDC_HD functions are forced inline and have internal linkage, and not only for speed. kernels_cpu.cpp is compiled
// once per instruction set. If a function had external linkage, the linker might keep the copy compiled for AVX2 for
// the baseline, too, which would then crash on a machine without AVX2.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTDC_HD_MEMBER __host__ __device__ __forceinline__
#define FASTDC_HD static __host__ __device__ __forceinline__
#else
#define FASTDC_HD_MEMBER inline __attribute__((always_inline))
#define FASTDC_HD static inline __attribute__((always_inline))
#endif

namespace fastdc {

// Element type of the network's input and output. Everything else (images, coefficients, errors) is float32.
enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// rho of the residual (see residual.h). kResidual, for maps only, is the residual itself. If a row makes the residual
// the denoised image, the map is that image.
enum class Loss : int { kL2 = 0, kL1 = 1, kHuber = 2, kResidual = 3 };

// Storage types for 16-bit floats. They are never used for arithmetic: load widens, store rounds to nearest even.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace fastdc
