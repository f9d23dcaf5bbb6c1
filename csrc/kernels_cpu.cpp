// The CPU twin of kernels.h: loops only. The arithmetic is in philox.h, noising.h and residual.h. The file is compiled
// once per instruction set; FASTDC_CPU_NAMESPACE names the namespace (cpu_baseline, cpu_avx2). All of them give the
// same bits: pixel values are single correctly rounded operations, and sums have one fixed order for any vector width
// and thread count (16 float32 lanes over a chunk of 1024 pixels, folded pairwise into float64, chunks added in order).
//
// Consecutive cells that share (image, draw) form a run. Its noise, and for errors the class-independent part of the
// residual, are computed once and used by every class of the run. A diffusion classifier evaluates every class at the
// same draws, so runs save most of the work around the network.
#include <cstddef>
#include <type_traits>

#include "dtypes.h"
#include "kernels.h"
#include "lanes.h"
#include "noising.h"
#include "residual.h"
#include "thread_pool.h"

#ifndef FASTDC_CPU_NAMESPACE
#error "FASTDC_CPU_NAMESPACE must name the namespace of this instruction set"
#endif

namespace fastdc {
namespace {

constexpr int64_t kChunk = 1024;          // pixels handled at a time: noise and offsets stay in the L1 cache
constexpr int kLanes = 16;                // float32 accumulators of a sum
constexpr int64_t kMaxRun = 16;           // cells of a run handled together; longer runs are split over threads
constexpr int64_t kWorkPerPiece = 16384;  // pixels x cells below which waking a thread costs more than it saves

struct Run {
  int64_t begin, end;  // cells
};

// The run that starts at cell `begin`.
Run run_at(const Step& step, int64_t begin, int64_t limit) {
  int64_t end = begin + 1;
  const Cell& first = step.cells[begin];
  while (end < limit && end - begin < kMaxRun && step.cells[end].image == first.image &&
         step.cells[end].draw == first.draw) {
    ++end;
  }
  return {begin, end};
}

// Calls body(run) for the runs of cells [begin, end). The end of a thread's piece may cut a run; this repeats some
// noise but changes no number.
template <class Body>
void for_runs(const Step& step, int64_t begin, int64_t end, Body&& body) {
  while (begin < end) {
    const Run run = run_at(step, begin, end);
    body(run);
    begin = run.end;
  }
}

int64_t piece_of_cells(const Step& step) {
  const int64_t cells = (kWorkPerPiece + step.size - 1) / step.size;
  return cells > kMaxRun ? cells : kMaxRun;
}

int64_t chunk_length(int64_t start, int64_t size) { return size - start < kChunk ? size - start : kChunk; }

NoiseId noise_of(const Step& step, const Cell& cell) {
  return noise_id(static_cast<uint64_t>(step.streams[cell.image]), noise_number(step, cell), step.purpose);
}

// Writes the normals of pixels [start, start + length) to `noise`, which has room for a whole chunk.
void noise_chunk(int64_t start, int64_t length, NoiseId id, PhiloxKey key, float* noise) {
  for (int64_t offset = 0; offset < length; offset += kTile)
    normal_tile((start + offset) / kTile, id, key, noise + offset);
}

template <class T>
void add_noise_run(const Step& step, Run run, T* u, float* noise) {
  const Cell& first = step.cells[run.begin];
  const CoefficientRow& row = step.rows[first.draw];
  const float* x = step.images + first.image * step.size;
  const NoiseId id = noise_of(step, first);
  T* first_row = u + run.begin * step.size;
  for (int64_t start = 0; start < step.size; start += kChunk) {
    const int64_t length = chunk_length(start, step.size);
    noise_chunk(start, length, id, philox_key(step.seed), noise);
    T* __restrict__ out = first_row + start;
    for (int64_t i = 0; i < length; ++i) store(noisy_value(row.gx, row.ge, x[start + i], noise[i]), out[i]);
    for (int64_t cell = run.begin + 1; cell < run.end; ++cell) {
      __builtin_memcpy(u + cell * step.size + start, out, static_cast<size_t>(length) * sizeof(T));
    }
  }
}

template <class T>
void add_noise_typed(const Step& step, T* u) {
  for_range(step.n_cells, piece_of_cells(step), [&](int64_t begin, int64_t end) {
    float noise[kChunk];
    for_runs(step, begin, end, [&](Run run) { add_noise_run(step, run, u, noise); });
  });
}

// The class-independent part of the residual for a chunk of one (image, draw).
void offset_chunk(const Step& step, const Cell& cell, const float* target, int64_t start, int64_t length,
                  float* offset) {
  const CoefficientRow& row = step.rows[cell.draw];
  const float* x = step.images + cell.image * step.size + start;
  noise_chunk(start, length, noise_of(step, cell), philox_key(step.seed), offset);
  if (target == nullptr) {
    for (int64_t i = 0; i < length; ++i) offset[i] = residual_offset(row.b, row.c, x[i], offset[i]);
  } else {
    const float* z = target + cell.image * step.size + start;
    for (int64_t i = 0; i < length; ++i) offset[i] = residual_offset(row.b, row.c, row.d, x[i], offset[i], z[i]);
  }
}

// Sums rho over a chunk: pixel i is added to lane i % 16, and lanes are folded pairwise in float64.
template <Loss loss, class T>
double chunk_sum(float a, float delta, const T* __restrict__ output, const float* __restrict__ offset, int64_t length) {
  float lanes[kLanes] = {};
  const int64_t whole = length - length % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += rho<loss>(residual(a, load(output[i + lane]), offset[i + lane]), delta);
    }
  }
  for (int64_t i = whole; i < length; ++i) {
    lanes[i - whole] += rho<loss>(residual(a, load(output[i]), offset[i]), delta);
  }
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = static_cast<double>(lanes[lane]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

template <Loss loss, class T>
void denoising_error_run(const Step& step, Run run, float delta, const T* output, const float* target, float* errors,
                         float* offset) {
  const Cell& first = step.cells[run.begin];
  const CoefficientRow& row = step.rows[first.draw];
  double totals[kMaxRun] = {};
  for (int64_t start = 0; start < step.size; start += kChunk) {
    const int64_t length = chunk_length(start, step.size);
    offset_chunk(step, first, target, start, length, offset);
    for (int64_t cell = run.begin; cell < run.end; ++cell) {
      totals[cell - run.begin] += chunk_sum<loss>(row.a, delta, output + cell * step.size + start, offset, length);
    }
  }
  for (int64_t cell = run.begin; cell < run.end; ++cell) {
    errors[cell] = weighted_mean(totals[cell - run.begin], step.size, row.weight);
  }
}

template <Loss loss, class T>
void denoising_error_typed(const Step& step, float delta, const T* output, const float* target, float* errors) {
  for_range(step.n_cells, piece_of_cells(step), [&](int64_t begin, int64_t end) {
    float offset[kChunk];
    for_runs(step, begin, end,
             [&](Run run) { denoising_error_run<loss>(step, run, delta, output, target, errors, offset); });
  });
}

// Threads own disjoint chunks of pixels and visit all cells in table order, so that a map is a sum in that order.
template <Loss loss, class T>
void error_map_typed(const Step& step, float delta, const T* output, const float* target, float* maps) {
  const int64_t chunks = (step.size + kChunk - 1) / kChunk;
  for_range(chunks, 1, [&](int64_t chunk_begin, int64_t chunk_end) {
    float offset[kChunk];
    for (int64_t start = chunk_begin * kChunk; start < chunk_end * kChunk && start < step.size; start += kChunk) {
      const int64_t length = chunk_length(start, step.size);
      for_runs(step, 0, step.n_cells, [&](Run run) {
        const Cell& first = step.cells[run.begin];
        const CoefficientRow& row = step.rows[first.draw];
        offset_chunk(step, first, target, start, length, offset);
        for (int64_t cell = run.begin; cell < run.end; ++cell) {
          const T* __restrict__ f = output + cell * step.size + start;
          float* __restrict__ map = maps + (first.image * step.n_classes + step.cells[cell].label) * step.size + start;
          for (int64_t i = 0; i < length; ++i) {
            map[i] += row.weight * rho<loss>(residual(row.a, load(f[i]), offset[i]), delta);
          }
        }
      });
    }
  });
}

template <Loss loss>
struct LossTag {
  static constexpr Loss value = loss;
};

template <class Body>
void with_loss(Loss loss, Body&& body) {
  switch (loss) {
    case Loss::kL2: return body(LossTag<Loss::kL2>{});
    case Loss::kL1: return body(LossTag<Loss::kL1>{});
    case Loss::kHuber: return body(LossTag<Loss::kHuber>{});
    case Loss::kResidual: return body(LossTag<Loss::kResidual>{});
  }
}

}  // namespace

namespace FASTDC_CPU_NAMESPACE {

void philox_normal(const int64_t* streams, const int32_t* draws, int64_t m, int64_t size, uint64_t seed,
                   uint32_t purpose, float* out, void*) {
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  for_range(m * chunks, kWorkPerPiece / kChunk, [&](int64_t begin, int64_t end) {
    float noise[kChunk];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / chunks;
      const int64_t start = item % chunks * kChunk;
      const int64_t length = chunk_length(start, size);
      const NoiseId id = noise_id(static_cast<uint64_t>(streams[row]), static_cast<uint32_t>(draws[row]), purpose);
      noise_chunk(start, length, id, philox_key(seed), noise);
      __builtin_memcpy(out + row * size + start, noise, static_cast<size_t>(length) * sizeof(float));
    }
  });
}

void add_noise(const Step& step, DType dtype, void* u, float* timestep, int64_t* labels, void*) {
  if (step.n_cells == 0) return;
  with_dtype(dtype, u, [&](auto* typed) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    add_noise_typed(step, const_cast<T*>(typed));
  });
  for (int64_t cell = 0; cell < step.n_cells; ++cell) {
    if (timestep != nullptr) timestep[cell] = step.rows[step.cells[cell].draw].timestep;
    if (labels != nullptr) labels[cell] = step.cells[cell].label;
  }
}

void denoising_error(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target,
                     float* errors, void*) {
  if (step.n_cells == 0) return;
  with_loss(form.loss, [&](auto loss) {
    with_dtype(dtype, network_output, [&](const auto* output) {
      denoising_error_typed<decltype(loss)::value>(step, form.delta, output, target, errors);
    });
  });
}

void error_map(const Step& step, ErrorForm form, DType dtype, const void* network_output, const float* target,
               float* maps, void*) {
  if (step.n_cells == 0) return;
  with_loss(form.loss, [&](auto loss) {
    with_dtype(dtype, network_output, [&](const auto* output) {
      error_map_typed<decltype(loss)::value>(step, form.delta, output, target, maps);
    });
  });
}

}  // namespace FASTDC_CPU_NAMESPACE
}  // namespace fastdc
