// The contract of the four kernels: shapes, formulas, and one launcher each, with the same signature for the CPU (one
// namespace per instruction set) and for CUDA. Launchers take raw pointers that bindings.cpp has checked. They allocate
// nothing, return at once on empty input, and on CUDA only enqueue work on the given stream.
//
// Symbols: B cells, n images of D pixels (D = channels * height * width), J draws, K classes.
#pragma once

#include "common.h"

namespace fastdc {

// One evaluation of the network: class `label` of image `image` under draw `draw`.
struct Cell {
  int32_t image, label, draw;
};

// Everything that depends on the draw. timestep is the network's time input.
struct CoefficientRow {
  float gx, ge, a, b, c, d, weight, timestep;
};

// The arguments that all kernels of a step share.
struct Step {
  const float* images;         // (n, D)  x, in the model's value range
  int64_t n_images;            // n
  int64_t size;                // D, below 2^33
  const Cell* cells;           // (B)
  int64_t n_cells;             // B
  const CoefficientRow* rows;  // (J)
  int64_t n_draws;             // J
  int64_t n_classes;           // K: labels are in [0, K)
  const int64_t* streams;      // (n)     noise stream of each image, in [0, 2^56)
  uint64_t seed;               // Philox key
  uint32_t purpose;            // below 2^8, see philox.h
  uint32_t noise_shift;        // 0, or 1 for antithetic pairs: draw j is made of noise number j >> noise_shift
};

// The number of a draw's noise. Antithetic draws 2i and 2i + 1 share one noise e; the row of the second has ge and c
// negated, so that it sees -e.
FASTDC_HD uint32_t noise_number(const Step& step, const Cell& cell) {
  return static_cast<uint32_t>(cell.draw) >> step.noise_shift;
}

struct ErrorForm {
  Loss loss;
  float delta;  // threshold of huber
};

// Declares the launchers of one implementation. `stream` is a cudaStream_t and ignored on the CPU.
//
// philox_normal    out[i, e] = normal e of (streams[i], draws[i])                             out: (m, size) float32
// add_noise        u[b] = gx[j] * x[i] + ge[j] * e                                            u: (B, D) of dtype
//                  and, if the pointers are not null, timestep[b] = t[j], labels[b] = k
// denoising_error  errors[b] = weight[j] * mean over pixels of rho(a F[b] + b x[i] + c e + d z[i])
//                                                        F: (B, D) of dtype, z: (n, D) or null, errors: (B) float32
// error_map        maps[i, k] += weight[j] * rho(...) pixel by pixel, cells in table order     maps: (n, K, D) float32
//
// with (i, k, j) = (image, label, draw) of cell b and e the normals of (streams[i], j >> noise_shift). On the CPU,
// bindings.cpp refuses a cell outside the tables. On CUDA, the host cannot read the table: the error of such a cell is
// NaN, and nothing is written elsewhere.
#define FASTDC_DECLARE_KERNELS                                                                                         \
  void philox_normal(const int64_t* streams, const int32_t* draws, int64_t m, int64_t size, uint64_t seed,             \
                     uint32_t purpose, float* out, void* stream);                                                      \
  void add_noise(const Step& step, DType dtype, void* u, float* timestep, int64_t* labels, void* stream);              \
  void denoising_error(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target, \
                       float* errors, void* stream);                                                                   \
  void error_map(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target,       \
                 float* maps, void* stream);

namespace cpu_baseline {
FASTDC_DECLARE_KERNELS
}
namespace cpu_avx2 {
FASTDC_DECLARE_KERNELS
}
namespace cuda {
FASTDC_DECLARE_KERNELS
// The number of usable devices; 0 without a driver, never throws.
int device_count() noexcept;
}  // namespace cuda

}  // namespace fastdc
