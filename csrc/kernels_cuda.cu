// The CUDA twin of kernels.h: kernels and launches. The arithmetic is in philox.h, noising.h and residual.h, the same
// source lines as on the CPU. With --fmad=false and IEEE division and square root, pixel values are designed to have
// the CPU's bits. Only the sum of denoising_error has another order than on the CPU, also a fixed one. quads.cuh
// describes the division of work; docs/gpu.md lists the properties that have been verified, and where.
//
// Launchers only enqueue: they do not allocate, synchronise or read device memory from the host, so they can be
// captured into a CUDA graph. They run on the device that holds the output. Sizes are 64-bit throughout.
#include <cuda_runtime.h>

#include <type_traits>

#include "dtypes.h"
#include "exceptions.h"
#include "kernels.h"
#include "noising.h"
#include "quads.cuh"
#include "residual.h"

// Makes a CUDA runtime call. On failure, throws BackendError with the call, its file and line, and CUDA's message.
#define FASTDC_CUDA_CHECK(call)                                                                               \
  do {                                                                                                        \
    const cudaError_t status = (call);                                                                        \
    if (status != cudaSuccess) {                                                                              \
      (void)cudaGetLastError(); /* reported here, so a later call must not report it */                       \
      throw ::fastdc::BackendError(                                                                           \
          ::fastdc::concat(#call, " failed at ", __FILE__, ":", __LINE__, ": ", cudaGetErrorString(status))); \
    }                                                                                                         \
  } while (false)

namespace fastdc {
namespace {

// Computes the class-independent part of the residual on one quad.
template <bool kVector>
__device__ __forceinline__ void offset_quad(const Step& step, const Shared& shared, const float* target, int64_t quad,
                                            int length, float (&offset)[kQuad]) {
  const CoefficientRow& row = shared.row;
  const int64_t at = shared.first_pixel + quad * kQuad;
  const Quad<float> x = load_quad<kVector>(step.images + at, length);
  float noise[kQuad];
  normal_block(static_cast<uint32_t>(quad), shared.id, philox_key(step.seed), noise);
  if (target == nullptr) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) offset[i] = residual_offset(row.b, row.c, x.values[i], noise[i]);
  } else {
    const Quad<float> z = load_quad<kVector>(target + at, length);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      offset[i] = residual_offset(row.b, row.c, row.d, x.values[i], noise[i], z.values[i]);
    }
  }
}

template <Loss loss, class T>
__device__ __forceinline__ void rho_quad(float a, float delta, const Quad<T>& output, const float (&offset)[kQuad],
                                         float (&losses)[kQuad]) {
#pragma unroll
  for (int i = 0; i < kQuad; ++i) losses[i] = rho<loss>(residual(a, load(output.values[i]), offset[i]), delta);
}

// The loss is the same for all threads of a launch: one uniform branch per quad.
template <class T>
__device__ __forceinline__ void rho_quad(ErrorForm form, float a, const Quad<T>& output, const float (&offset)[kQuad],
                                         float (&losses)[kQuad]) {
  switch (form.loss) {
    case Loss::kL2: return rho_quad<Loss::kL2>(a, form.delta, output, offset, losses);
    case Loss::kL1: return rho_quad<Loss::kL1>(a, form.delta, output, offset, losses);
    case Loss::kHuber: return rho_quad<Loss::kHuber>(a, form.delta, output, offset, losses);
    case Loss::kResidual: return rho_quad<Loss::kResidual>(a, form.delta, output, offset, losses);
  }
}

// Mapping: x over the quads of a row, y over the m rows. A thread makes one Philox block and stores its 4 normals.
// Threads share nothing.
template <bool kVector>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    philox_normal_kernel(const int64_t* __restrict__ streams, const int32_t* __restrict__ draws, int64_t m,
                         int64_t size, uint64_t seed, uint32_t purpose, float* __restrict__ out) {
  const PhiloxKey key = philox_key(seed);
  const int64_t quads = quads_of(size);
  const Walk rows = walk_y(), columns = walk_x();
  for (int64_t row = rows.begin; row < m; row += rows.stride) {
    const NoiseId id = noise_id(static_cast<uint64_t>(streams[row]), static_cast<uint32_t>(draws[row]), purpose);
    for (int64_t quad = columns.begin; quad < quads; quad += columns.stride) {
      Quad<float> normals;
      normal_block(static_cast<uint32_t>(quad), id, key, normals.values);
      store_quad<kVector>(normals, out + row * size + quad * kQuad, quad_length(quad, size));
    }
  }
}

// Mapping: x over the quads of an image, y over cells; only the first cell of a run works. A thread reads 4 pixels,
// makes their noise once, and stores the same 4 values to every row of the run, so that a warp writes 512 (or 256)
// consecutive bytes per row. The thread of quad 0 also writes each cell's timestep and class. The row of an invalid
// cell becomes NaN with timestep NaN and class 0, which every network has.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    add_noise_kernel(Step step, T* __restrict__ u, float* __restrict__ timestep, int64_t* __restrict__ labels) {
  const PhiloxKey key = philox_key(step.seed);
  const int64_t quads = quads_of(step.size);
  const Walk cells = walk_y(), columns = walk_x();
  for (int64_t begin = cells.begin; begin < step.n_cells; begin += cells.stride) {
    const Cell first = step.cells[begin];
    const Run run = run_at(step, begin, first);
    if (run.count == 0) continue;
    Shared shared = {};
    if (run.readable) shared = shared_of(step, first);
    for (int64_t quad = columns.begin; quad < quads; quad += columns.stride) {
      const int length = quad_length(quad, step.size);
      Quad<T> values = {};
      if (run.readable) {
        const Quad<float> x = load_quad<kVector>(step.images + shared.first_pixel + quad * kQuad, length);
        float noise[kQuad];
        normal_block(static_cast<uint32_t>(quad), shared.id, key, noise);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          store(noisy_value(shared.row.gx, shared.row.ge, x.values[i], noise[i]), values.values[i]);
        }
      }
      T* out = u + begin * step.size + quad * kQuad;
#pragma unroll 1
      for (int k = 0; k < run.count; ++k, out += step.size) {
        Quad<T> stored = values;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) {
          if (!is_valid(run, k)) store(not_a_number(), stored.values[i]);
        }
        store_quad<kVector>(stored, out, length);
      }
    }
    if (columns.begin == 0) {
#pragma unroll 1
      for (int k = 0; k < run.count; ++k) {
        const bool valid = is_valid(run, k);
        if (timestep != nullptr) timestep[begin + k] = valid ? step.rows[first.draw].timestep : not_a_number();
        if (labels != nullptr) labels[begin + k] = valid ? step.cells[begin + k].label : 0;
      }
    }
  }
}

// Sums over the lanes of a warp; lane 0 has the total. The order is fixed: halves are folded onto each other.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, width);
  return value;
}

// Waits for the threads of a group, whose x spans a warp or the block.
__device__ __forceinline__ void group_barrier() {
  if (blockDim.x > kWarp) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

// Mapping: a group of threads, one warp for small images and a whole block for larger ones, takes the run that its cell
// leads; lanes stride over the quads. For each quad, a thread first requests the network's output of all cells of the
// run, then makes noise and offset while these loads are under way, then adds each cell's 4 losses to that cell's
// float32 sum. Sums are folded over the lanes in float32, then over the warps in order in float64. The group size, and
// the thread that adds a pixel, depend on D alone. So a cell's error does not depend on its position in the batch, on
// its neighbours, or on the cutting of its run.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    denoising_error_kernel(Step step, ErrorForm form, const T* __restrict__ output, const float* __restrict__ target,
                           float* __restrict__ errors) {
  __shared__ float partial[kWarps][kMaxRun];
  const int group_warps = static_cast<int>(blockDim.x) / kWarp;
  const int group_warp = static_cast<int>(threadIdx.y) * group_warps;  // the group's first row of `partial`
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t quads = quads_of(step.size);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; begin < step.n_cells;
       begin += stride) {
    const Cell first = step.cells[begin];
    const Run run = run_at(step, begin, first);
    if (run.count == 0) continue;  // the whole group leaves, so no thread waits at the barriers below
    Shared shared = {};
    float sums[kMaxRun] = {};
    if (run.readable) {
      shared = shared_of(step, first);
      for (int64_t quad = lane; quad < quads; quad += blockDim.x) {
        const int length = quad_length(quad, step.size);
        const T* from = output + begin * step.size + quad * kQuad;
        Quad<T> outputs[kMaxRun];
#pragma unroll
        for (int k = 0; k < kMaxRun; ++k) {
          if (k < run.count) outputs[k] = load_quad<kVector>(from + k * step.size, length);
        }
        float offset[kQuad];
        offset_quad<kVector>(step, shared, target, quad, length, offset);
#pragma unroll
        for (int k = 0; k < kMaxRun; ++k) {
          if (k >= run.count) break;
          float losses[kQuad];
          rho_quad(form, shared.row.a, outputs[k], offset, losses);
#pragma unroll
          for (int i = 0; i < kQuad; ++i) {
            if (i < length) sums[k] += losses[i];
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kMaxRun; ++k) {
      if (k >= run.count) break;
      const float sum = warp_sum(sums[k]);
      if (lane % kWarp == 0) partial[group_warp + lane / kWarp][k] = sum;
    }
    group_barrier();
    if (lane < run.count) {
      double total = 0.0;
      for (int warp = 0; warp < group_warps; ++warp) total += static_cast<double>(partial[group_warp + warp][lane]);
      const float error = weighted_mean(total, step.size, shared.row.weight);
      errors[begin + lane] = is_valid(run, lane) ? error : not_a_number();
    }
    group_barrier();
  }
}

// Mapping: x over the quads of an image, y over images. A thread owns 4 pixels of all K maps of one image and visits
// the cell table in order, skipping the cells of other images. So each map is a sum in table order without atomics: the
// CPU's order, and its bits. The noise is kept from one cell to the next while the draw stays the same.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    error_map_kernel(Step step, ErrorForm form, const T* __restrict__ output, const float* __restrict__ target,
                     float* __restrict__ maps) {
  const int64_t quads = quads_of(step.size);
  const Walk images = walk_y(), columns = walk_x();
  for (int64_t image = images.begin; image < step.n_images; image += images.stride) {
    for (int64_t quad = columns.begin; quad < quads; quad += columns.stride) {
      const int length = quad_length(quad, step.size);
      Shared shared = {};
      float offset[kQuad] = {};
      int32_t draw = -1;
      for (int64_t b = 0; b < step.n_cells; ++b) {
        const Cell cell = step.cells[b];
        if (cell.image != image || !readable(step, cell)) continue;
        if (cell.label < 0 || cell.label >= step.n_classes) continue;
        if (cell.draw != draw) {
          draw = cell.draw;
          shared = shared_of(step, cell);
          offset_quad<kVector>(step, shared, target, quad, length, offset);
        }
        const Quad<T> f = load_quad<kVector>(output + b * step.size + quad * kQuad, length);
        float losses[kQuad];
        rho_quad(form, shared.row.a, f, offset, losses);
        float* map = maps + (image * step.n_classes + cell.label) * step.size + quad * kQuad;
        Quad<float> sums = load_quad<kVector>(static_cast<const float*>(map), length);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) sums.values[i] += shared.row.weight * losses[i];
        store_quad<kVector>(sums, map, length);
      }
    }
  }
}

// Makes the device that holds `data` the current one, as launches require, and restores the caller's device at the end.
class DeviceOf {
 public:
  explicit DeviceOf(const void* data) {
    FASTDC_CUDA_CHECK(cudaGetDevice(&before_));
    cudaPointerAttributes attributes = {};
    FASTDC_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    changed_ = attributes.device >= 0 && attributes.device != before_;
    if (changed_) FASTDC_CUDA_CHECK(cudaSetDevice(attributes.device));
  }
  ~DeviceOf() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceOf(const DeviceOf&) = delete;
  DeviceOf& operator=(const DeviceOf&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Geometry& geometry, void* stream, Parameters... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = geometry.grid;
  config.blockDim = geometry.block;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class T>
bool aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Quad<T>) == 0;
}

template <class T>
void add_noise_typed(const Step& step, T* u, float* timestep, int64_t* labels, void* stream) {
  const bool vector = step.size % kQuad == 0 && aligned(step.images) && aligned(u);
  const auto kernel = vector ? add_noise_kernel<T, true> : add_noise_kernel<T, false>;
  FASTDC_CUDA_CHECK(launch(kernel, tiles(step.size, step.n_cells), stream, step, u, timestep, labels));
}

template <class T>
void denoising_error_typed(const Step& step, ErrorForm form, const T* output, const float* target, float* errors,
                           void* stream) {
  const bool vector = step.size % kQuad == 0 && aligned(step.images) && aligned(output) && aligned(target);
  const auto kernel = vector ? denoising_error_kernel<T, true> : denoising_error_kernel<T, false>;
  FASTDC_CUDA_CHECK(launch(kernel, groups(step.size, step.n_cells), stream, step, form, output, target, errors));
}

template <class T>
void error_map_typed(const Step& step, ErrorForm form, const T* output, const float* target, float* maps,
                     void* stream) {
  const bool vector =
      step.size % kQuad == 0 && aligned(step.images) && aligned(output) && aligned(target) && aligned(maps);
  const auto kernel = vector ? error_map_kernel<T, true> : error_map_kernel<T, false>;
  FASTDC_CUDA_CHECK(launch(kernel, tiles(step.size, step.n_images), stream, step, form, output, target, maps));
}

}  // namespace

namespace cuda {

void philox_normal(const int64_t* streams, const int32_t* draws, int64_t m, int64_t size, uint64_t seed,
                   uint32_t purpose, float* out, void* stream) {
  if (m == 0 || size == 0) return;
  const DeviceOf device(out);
  const auto kernel = size % kQuad == 0 && aligned(out) ? philox_normal_kernel<true> : philox_normal_kernel<false>;
  FASTDC_CUDA_CHECK(launch(kernel, tiles(size, m), stream, streams, draws, m, size, seed, purpose, out));
}

void add_noise(const Step& step, DType dtype, void* u, float* timestep, int64_t* labels, void* stream) {
  if (step.n_cells == 0) return;
  const DeviceOf device(u);
  with_dtype(dtype, u, [&](auto* typed) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    add_noise_typed(step, const_cast<T*>(typed), timestep, labels, stream);
  });
}

void denoising_error(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target,
                     float* errors, void* stream) {
  if (step.n_cells == 0) return;
  const DeviceOf device(errors);
  with_dtype(dtype, network_output,
             [&](const auto* output) { denoising_error_typed(step, form, output, target, errors, stream); });
}

void error_map(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target,
               float* maps, void* stream) {
  if (step.n_cells == 0 || step.n_images == 0) return;
  const DeviceOf device(maps);
  with_dtype(dtype, network_output,
             [&](const auto* output) { error_map_typed(step, form, output, target, maps, stream); });
}

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

}  // namespace cuda
}  // namespace fastdc
