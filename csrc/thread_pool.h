// A small thread pool for the CPU kernels. OpenMP's idle threads spin, which takes cores away from the network, whose
// steps alternate with ours. A second OpenMP runtime beside torch's is also a known source of trouble.
#pragma once

#include <cstdint>

namespace fastdc {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over disjoint pieces that cover [0, count). The caller works, too. Pieces are
// assigned dynamically, so the result for an index must not depend on its piece.
void parallel_for(int64_t count, int64_t min_piece, RangeFunction function, void* context);

// The number of threads that parallel_for uses, including the caller. Default: the CPUs that this process may run on.
int num_threads();
void set_num_threads(int threads);

// Calls parallel_for with a callable body(begin, end).
template <class Body>
void for_range(int64_t count, int64_t min_piece, Body&& body) {
  parallel_for(
      count, min_piece, [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

}  // namespace fastdc
