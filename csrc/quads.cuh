// The division of work of the CUDA kernels: quads of pixels, runs of cells, and the shape of a launch.
//
// A Philox block makes the noise of 4 consecutive pixels, a "quad", which one thread handles. If rows are aligned and a
// multiple of 4 pixels long, a quad is one 16-byte access (8-byte for 16-bit types). Otherwise its pixels are read one
// by one, in the same order, so that the path changes no number.
//
// Consecutive cells that share (image, draw) form a run, and one group of threads makes the noise for all of it: the
// group of the run's first cell does the work, and the groups of the other cells leave at once. The noise of a pixel
// takes about 60 issue slots, and moving the pixel takes one. So runs let a step with many classes run at the speed of
// memory. Cells that all differ have one group each, and none waits for another. Runs are cut at multiples of kMaxRun
// cells, which bounds the work of a group; it finds its run by reading at most kMaxRun cells.
#pragma once

#include "dtypes.h"
#include "kernels.h"
#include "philox.h"

namespace fastdc {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;                // threads per block
constexpr int kMinBlocks = 2;                // blocks per SM: keeps registers under 128 without spills (docs/gpu.md)
constexpr int kWarps = kThreads / kWarp;     // warps per block
constexpr int kQuad = 4;                     // pixels per Philox block
constexpr int kMaxRun = 8;                   // most cells that share one computation of the noise
constexpr int64_t kQuadsPerWarpGroup = 128;  // one warp, not one block, sums images of up to this many quads
constexpr int64_t kMaxGridX = 0x7FFFFFFF;
constexpr int64_t kMaxGridY = 0xFFFF;

// Four neighbours in a row, aligned so that one instruction moves them.
template <class T>
struct alignas(kQuad * sizeof(T)) Quad {
  T values[kQuad];
};

// The number of pixels of quad number `quad` in a row of `size`: 4, or fewer at the end.
__device__ __forceinline__ int quad_length(int64_t quad, int64_t size) {
  const int64_t left = size - quad * kQuad;
  return left < kQuad ? static_cast<int>(left) : kQuad;
}

template <bool kVector, class T>
__device__ __forceinline__ Quad<T> load_quad(const T* from, int length) {
  if constexpr (kVector) {
    return *reinterpret_cast<const Quad<T>*>(from);
  } else {
    Quad<T> quad = {};
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < length) quad.values[i] = from[i];
    }
    return quad;
  }
}

template <bool kVector, class T>
__device__ __forceinline__ void store_quad(const Quad<T>& quad, T* to, int length) {
  if constexpr (kVector) {
    *reinterpret_cast<Quad<T>*>(to) = quad;
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < length) to[i] = quad.values[i];
    }
  }
}

__device__ __forceinline__ float not_a_number() { return FASTDC_BITS_TO_FLOAT(0x7FC00000u); }

__device__ __forceinline__ bool readable(const Step& step, const Cell& cell) {
  return cell.image >= 0 && cell.image < step.n_images && cell.draw >= 0 && cell.draw < step.n_draws;
}

// The values that all pixels of an (image, draw) share.
struct Shared {
  CoefficientRow row;
  NoiseId id;
  int64_t first_pixel;  // index of the image's first pixel in the table of images
};

__device__ __forceinline__ Shared shared_of(const Step& step, const Cell& cell) {
  const uint64_t stream = static_cast<uint64_t>(step.streams[cell.image]);
  return {step.rows[cell.draw], noise_id(stream, noise_number(step, cell), step.purpose), cell.image * step.size};
}

// The run that cell `begin` leads.
struct Run {
  int count;       // number of cells; 0 if the cell before belongs to the same run
  bool readable;   // image and draw are inside their tables (they are the same for the whole run)
  uint32_t valid;  // bit k: cell begin + k is readable and its label is a class
};

__device__ __forceinline__ bool is_valid(const Run& run, int k) { return (run.valid >> k & 1u) != 0; }

__device__ __forceinline__ Run run_at(const Step& step, int64_t begin, const Cell& first) {
  Run run = {0, readable(step, first), 0};
  if (begin % kMaxRun != 0) {
    const Cell& before = step.cells[begin - 1];
    if (before.image == first.image && before.draw == first.draw) return run;
  }
  const int64_t limit = kMaxRun - begin % kMaxRun;
  for (int64_t k = 0; k < limit && begin + k < step.n_cells; ++k) {
    const Cell& cell = step.cells[begin + k];
    if (cell.image != first.image || cell.draw != first.draw) break;
    const bool valid = run.readable && cell.label >= 0 && cell.label < step.n_classes;
    run.valid |= static_cast<uint32_t>(valid) << k;
    run.count = static_cast<int>(k) + 1;
  }
  return run;
}

// One axis of a thread's walk: x runs over the quads of a row and y over rows, both with a stride.
struct Walk {
  int64_t begin, stride;
};
__device__ __forceinline__ Walk walk_x() {
  return {static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, static_cast<int64_t>(gridDim.x) * blockDim.x};
}
__device__ __forceinline__ Walk walk_y() {
  return {static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y, static_cast<int64_t>(gridDim.y) * blockDim.y};
}

__host__ __device__ __forceinline__ int64_t quads_of(int64_t size) { return (size + kQuad - 1) / kQuad; }

struct Geometry {
  dim3 grid, block;
};

int64_t clamped_blocks(int64_t items, int64_t per_block, int64_t limit) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return blocks < limit ? blocks : limit;
}

// Blocks of kThreads: x over quads, as narrow as one warp if the row is short, and y over rows.
Geometry tiles(int64_t size, int64_t rows) {
  const int64_t quads = quads_of(size);
  int width = kWarp;
  while (width < kThreads && width < quads) width *= 2;
  const int height = kThreads / width;
  return {dim3(static_cast<unsigned>(clamped_blocks(quads, width, kMaxGridX)),
               static_cast<unsigned>(clamped_blocks(rows, height, kMaxGridY))),
          dim3(static_cast<unsigned>(width), static_cast<unsigned>(height))};
}

// One group of threads per cell: x runs over the lanes of a group, y over the groups of a block.
Geometry groups(int64_t size, int64_t cells) {
  const int width = quads_of(size) <= kQuadsPerWarpGroup ? kWarp : kThreads;
  const int height = kThreads / width;
  return {dim3(static_cast<unsigned>(clamped_blocks(cells, height, kMaxGridX))),
          dim3(static_cast<unsigned>(width), static_cast<unsigned>(height))};
}

}  // namespace
}  // namespace fastdc
