// What every file of the native module shares: the qualifier that lets one body compile for host and device, element
// types of the network's side, and the checks that turn a bad argument into a Python exception.
//
// FASTDC_HD functions are forced inline and have internal linkage. That is not only for speed: kernels_cpu.cpp is
// compiled once per instruction set, and a function with external linkage compiled for AVX2 could be the copy that the
// linker keeps for the baseline too, which would then crash on a machine without AVX2.
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

// rho of the residual (see residual.h). kResidual, for maps only, is the residual itself: where a row makes that the
// denoised image, the map is the image.
enum class Loss : int { kL2 = 0, kL1 = 1, kHuber = 2, kResidual = 3 };

// Storage types for 16-bit floats. Arithmetic never happens in them: load widens, store rounds to nearest even.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace fastdc
