// A small pool for the CPU kernels. Not OpenMP: its idle threads spin, which takes cores away from the inference
// engine whose steps alternate with ours, and a second OpenMP runtime next to torch's is a known source of trouble.
#pragma once

#include <cstdint>

namespace fastdc {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over disjoint pieces that cover [0, count). The caller works too. Pieces are
// handed out dynamically; what is computed for an index must not depend on the piece it falls into.
void parallel_for(int64_t count, int64_t min_piece, RangeFunction function, void* context);

// The number of threads parallel_for uses, the caller included. Default: the CPUs this process may run on.
int num_threads();
void set_num_threads(int threads);

// parallel_for over a callable: body(begin, end).
template <class Body>
void for_range(int64_t count, int64_t min_piece, Body&& body) {
  parallel_for(
      count, min_piece, [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace fastdc
